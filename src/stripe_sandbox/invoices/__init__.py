"""Invoices: what is on them, how they come about, and how they are paid."""
