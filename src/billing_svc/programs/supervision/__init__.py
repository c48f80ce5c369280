"""Keeping child processes: how each is started, tied to its parent, started again and ended."""
