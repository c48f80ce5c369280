"""The route table of the API."""
