"""What follows when Stripe refuses: a deleted customer is unlinked, and an archived price gets its name."""
