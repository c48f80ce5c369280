"""Accounts: who is billed."""
