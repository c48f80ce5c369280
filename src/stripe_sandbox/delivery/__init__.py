"""Events and their delivery to the webhook."""
