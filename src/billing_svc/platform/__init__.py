"""Shared by every area: database, errors, settings, clock, logs, monitoring, audit, accounts.

Imports no other area.
"""
