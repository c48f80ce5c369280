"""Findings: what is wrong at Stripe, or between Stripe and us, and needs a person."""
