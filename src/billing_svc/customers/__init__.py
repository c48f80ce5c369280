"""An account's customer at Stripe, and what that customer may do there."""
