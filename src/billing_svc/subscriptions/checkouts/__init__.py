"""Selling a plan on a page of Stripe's."""
