"""Dropping a database of a test."""

import time

import psycopg
from psycopg import sql

# Generous for a busy machine; who holds a database for longer is stuck.
_SECONDS_MAX = 20


def drop(connection: psycopg.Connection, name: str) -> None:
    """Drop a database, and disconnect whoever uses it.

    Processes that may not be disconnected, such as the autovacuum's, end soon and are waited for.
    """
    for seconds_left in range(_SECONDS_MAX, -1, -1):
        try:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectInUse):
            if not seconds_left:
                raise
            time.sleep(1)
        else:
            return
