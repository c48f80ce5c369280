"""Stripe's webhook events: stored as received, leased by object, applied, replayed.

May import subscriptions and lower areas; not reconciliation.
"""
