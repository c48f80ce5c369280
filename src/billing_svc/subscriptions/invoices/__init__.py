"""Invoices as Stripe last told of them."""
