"""Stripe: the client, stored intents, leases, prices, catalog sync, and the reading of Stripe's objects.

May import the catalog and the platform.
"""
