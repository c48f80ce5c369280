"""Customers and what they do: cards, checkout, the portal."""
