"""Updates stored subscriptions from Stripe, and the effects on the account's other subscriptions."""
