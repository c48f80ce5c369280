"""Switches pay-as-you-go on and off."""
