"""The table of what the sandbox answers."""
