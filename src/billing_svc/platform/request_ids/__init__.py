"""Requests remembered by their request ids, so that a repeated request gets the first answer."""
