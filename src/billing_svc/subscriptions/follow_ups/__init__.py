"""What the service itself has to do about a subscription at Stripe, because of something that happened here."""
