"""Control routes and faults, for tests; Stripe has neither."""
