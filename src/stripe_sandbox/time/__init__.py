"""The sandbox's clock, and the changes that are due at certain times."""
