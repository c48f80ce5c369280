"""The schema's history, applied by `migrating.py`."""
