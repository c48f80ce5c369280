"""The account's customer at Stripe: made, linked, unlinked, and its portal pages.

May import stripe and what is below it; not pricing.
"""
