"""The inbox: webhook events, kept as received and applied afterwards."""
