"""How a request is decoded, checked, executed and answered."""
