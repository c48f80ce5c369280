"""The account's customer at Stripe: created, linked and unlinked, and its portal pages.

May import stripe and what is below it; not pricing.
"""
