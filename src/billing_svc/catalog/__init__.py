"""The catalog: meters, plans and policies, as a file defines them and as its versions keep them.

May import the platform.
"""
