"""What was bought: checkout, changes, pay-as-you-go, invoices, previews, moves, and what follows at Stripe.

May import metering and usage_export, and what is below them.
"""
