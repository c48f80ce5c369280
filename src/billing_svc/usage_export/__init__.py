"""What is billable goes to Stripe: accrual, sending, late charges; docs/adr/0007 says how.

May import pricing and customers, and what is below them; not metering.
"""
