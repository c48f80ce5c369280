"""The path of a request: what it says, what is refused, what is answered."""
