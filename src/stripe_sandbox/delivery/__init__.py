"""Events, and how the webhook gets them."""
