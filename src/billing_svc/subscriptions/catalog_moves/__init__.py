"""Moves subscriptions to a newer version of the catalog."""
