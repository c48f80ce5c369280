"""The quota decision: whether an account may do something now."""
