"""What operators and their consoles may do."""
