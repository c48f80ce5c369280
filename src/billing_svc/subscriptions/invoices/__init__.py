"""Invoices, as of their last fetch from Stripe."""
