"""What callers asked under their request ids, so that a repeat is given the first answer."""
