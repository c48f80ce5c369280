"""Ours against Stripe's: objects and sums of usage, their discrepancies, and their repair.

May import subscriptions and what is below it; not the inbox.
"""
