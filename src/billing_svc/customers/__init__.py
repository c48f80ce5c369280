"""The account's customer at Stripe: created, linked and unlinked, and its portal pages.

May import stripe and lower areas; not pricing.
"""
