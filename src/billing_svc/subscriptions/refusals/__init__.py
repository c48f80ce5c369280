"""What follows when Stripe refuses: a deleted customer is unlinked, and an error names an archived price."""
