"""The price of overage and of a plan, and how an invoice line is rounded. Pure.

May import the catalog and the platform; not customers.
"""
