"""Our view of Stripe against Stripe's own."""
