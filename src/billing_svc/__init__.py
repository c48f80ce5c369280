"""The billing service: decisions, counting, and the pipeline to and from Stripe."""
