"""Changing and ending what was bought, on a caller's request."""
