"""Faults between a transaction's statements: what Postgres, the network or we ourselves do at any of them."""

from collections.abc import Callable
from typing import Any, Self

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.platform.database import direct
from billing_svc.platform.database import engine as engines

# What happens at a statement; gets the id of its backend.
Fault = Callable[[int], None]


def serialization_failure(_pid: int) -> None:
    raise psycopg.errors.SerializationFailure


def deadlock(_pid: int) -> None:
    raise psycopg.errors.DeadlockDetected


def defect(_pid: int) -> None:
    raise ZeroDivisionError


class Assassin:
    """Ends a backend, from a connection of its own."""

    def __init__(self, url: str) -> None:
        arguments = engines.driver_url(url).translate_connect_args(username="user", database="dbname")
        self._connection = psycopg.connect(autocommit=True, **arguments)

    def __call__(self, pid: int) -> None:
        self._connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def close(self) -> None:
        self._connection.close()


class Faulty:
    """Lets a fault happen at the nth statement that an engine runs, once or each time."""

    def __init__(self, engine: AsyncEngine, fault: Fault, at: int, *, lasting: bool) -> None:
        self._engine, self._fault, self._at, self._lasting = engine, fault, at, lasting
        self._patch = pytest.MonkeyPatch()
        self.statements = 0

    def _count(self, pid: int) -> None:
        self.statements += 1
        if self.statements == self._at or (self._lasting and self.statements > self._at):
            self._fault(pid)

    def _execute(self, cursor: Any, *_: object) -> None:  # noqa: ANN401
        self._count(cursor._connection.info.backend_pid)  # noqa: SLF001 - there is no other way

    def __enter__(self) -> Self:
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            sa.event.listen(self._engine.sync_engine, name, self._execute)
        fetch_each = direct.fetch_each

        async def counted(conn: AsyncConnection, *calls: direct.Call) -> list[list[direct.Row]]:
            # One by one, so that faults come between the statements of a round trip too.
            rows = []
            for call in calls:
                self._count(direct.driver_connection(conn).info.backend_pid)
                rows += await fetch_each(conn, call)
            return rows

        self._patch.setattr(direct, "fetch_each", counted)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            sa.event.remove(self._engine.sync_engine, name, self._execute)
