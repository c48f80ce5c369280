"""What Stripe does not have: the control routes, and the faults that they bring about."""
