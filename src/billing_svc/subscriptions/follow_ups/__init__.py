"""Writes at Stripe that the service has to make for a subscription because of a change here."""
