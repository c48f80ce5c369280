"""Bringing subscriptions to what Stripe has, and what follows for the account's others."""
