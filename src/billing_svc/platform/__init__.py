"""What every area stands on: database, errors, settings, clock, logs, monitoring, audit, accounts.

Imports no other area.
"""
