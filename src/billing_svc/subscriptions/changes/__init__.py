"""Changes and cancels subscriptions on a caller's request."""
