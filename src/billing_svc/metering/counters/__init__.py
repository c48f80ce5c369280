"""Counters: the totals of an account, meter and period, locked, opened and written."""
