"""Customers, their cards, the checkout and the portal."""
