"""Sold subscriptions: checkout, changes, pay-as-you-go, invoices, cost previews, catalog moves, follow-ups at Stripe.

May import metering, usage_export and the areas below them.
"""
