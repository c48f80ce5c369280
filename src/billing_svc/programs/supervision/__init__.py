"""Supervises child processes: starts them, ties them to their parent, restarts and stops them."""
