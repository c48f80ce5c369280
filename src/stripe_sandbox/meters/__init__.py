"""Usage: the meters, what is reported to them, and what they count."""
