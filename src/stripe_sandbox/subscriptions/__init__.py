"""Subscriptions in the course of their lives: items, periods, changes, schedules, ends."""
