"""The sandbox's clock, and all that happens by itself as it moves."""
