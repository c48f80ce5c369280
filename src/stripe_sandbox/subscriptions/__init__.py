"""Subscriptions: their beginning, items, periods, changes, schedules and end."""
