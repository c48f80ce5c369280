"""Reservations: units held for work in progress, until settled, released or expired."""
