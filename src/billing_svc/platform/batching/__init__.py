"""Grouping concurrent calls into batches."""
