"""Subscriptions as Stripe has them: fetched, applied, stored."""
