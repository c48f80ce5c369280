"""Usage: immutable events, and the counters that they add up to."""
