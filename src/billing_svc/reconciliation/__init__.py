"""Compares our records with Stripe's: subscriptions, invoices and usage; lists the discrepancies and repairs them.

May import subscriptions and the areas below it; not the inbox.
"""
