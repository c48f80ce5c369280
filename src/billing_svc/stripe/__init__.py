"""Stripe: the client, the stored intents, and what is brought there from here."""
