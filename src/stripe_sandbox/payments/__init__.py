"""Payments of invoices, their refunds and disputes."""
