"""Stripe's webhook events: stored as received, leased by object, applied, replayed.

May import subscriptions and what is below it; not reconciliation.
"""
