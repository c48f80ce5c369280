"""A stateful stand-in for the part of Stripe's HTTP API that billing-svc uses, for development and tests."""
