"""Subscriptions as Stripe has them, and the plan that they give."""
