"""Postgres: connections, transactions, the schema, and the embedded server for development."""
