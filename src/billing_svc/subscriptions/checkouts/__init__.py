"""Sells plans on Stripe's checkout pages."""
