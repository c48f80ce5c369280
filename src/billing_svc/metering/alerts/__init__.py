"""Alerts: told once when usage crosses a threshold."""
