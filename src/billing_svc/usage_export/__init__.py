"""Charges billable usage through Stripe: accrual, sending, late charges; docs/adr/0007 has the design.

May import pricing, customers and the areas below them; not metering.
"""
