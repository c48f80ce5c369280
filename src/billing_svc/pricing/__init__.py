"""Pricing: what a plan and its usage come to, line by line."""
