"""Overrides: what one account has of a meter in place of what its plan includes."""
