"""The catalog: meters, plans and policies, defined in a file and stored as versions.

May import the platform.
"""
