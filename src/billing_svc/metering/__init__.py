"""Decisions and counting: quota, usage, reservations, gauges, corrections, alerts, overrides, usage summaries.

May import pricing and customers, and what is below them; not usage_export.

Every transaction takes its locks in one order, and each kind by key, so that processes cannot deadlock: accounts,
counters, gauge levels, reservations, rate windows; then it inserts what is new (accounts, counters, reservations,
events). A transaction that admits units (a hold, an event with REJECT) locks the account: holds take up room in the
current period, whichever period they were made in, so such a transaction decides by the counters of two periods.
"""
