"""Corrections: new entries that take usage back."""
