"""Meters, the usage that is reported to them, and its sums."""
