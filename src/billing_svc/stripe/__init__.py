"""Stripe: the client, stored intents, leases, prices, stored subscriptions, catalog sync, and parsing of objects.

May import the catalog and the platform.
"""
