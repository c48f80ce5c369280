"""Invoices: their lines, how they are created, and how they are paid."""
