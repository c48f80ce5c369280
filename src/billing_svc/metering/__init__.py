"""Decisions and counting: quota, usage, reservations, gauges, corrections, alerts, overrides, usage summaries.

May import pricing and customers, and what is below them.
"""
