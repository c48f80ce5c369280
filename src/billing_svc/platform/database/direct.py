"""Sends statements of the hot path directly to libpq: prepared once for each connection, several in one round trip.

They use the connections and transactions of all other statements, and may be mixed with them. The work of SQLAlchemy
and psycopg for each statement (a task switch, a cursor, rows, waiting in Python) takes several times as long as
Postgres and the network; see ADR 0004.
"""

import asyncio
import itertools
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

import psycopg
from psycopg import abc, pq
from psycopg.adapt import Transformer
from sqlalchemy.ext.asyncio import AsyncConnection

Row: TypeAlias = tuple[Any, ...]
Value: TypeAlias = str | int | bool | datetime | None

# How long a cancel request to Postgres may take; less than transactions.CLEANUP_SECONDS_MAX.
_CANCEL_SECONDS_MAX = 0.5
_NAMED = re.compile(r"(?<!:):([a-z_]+)")
_numbers = itertools.count(1)
_IDLE = pq.TransactionStatus.IDLE
_UNFINISHED = frozenset({pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR})
# The key of a connection's `_State` in the pool's `info`, which lives as long as the driver's connection.
_STATE = "direct"


class PreparedStatement:
    """A statement of fixed text. Its parameters are named as in `:rows`; casts in the text give their types."""

    def __init__(self, text: str) -> None:
        self.name = f"hot_{next(_numbers)}".encode()
        self.parameters = tuple(dict.fromkeys(_NAMED.findall(text)))
        self.text = _NAMED.sub(lambda found: f"${self.parameters.index(found[1]) + 1}", text).encode()

    def encoded(self, values: Mapping[str, Value]) -> list[bytes | None]:
        """Return the values in Postgres' text format."""
        return [_encoded(values[name]) for name in self.parameters]


Call: TypeAlias = tuple[PreparedStatement, Mapping[str, Value]]

_COMMIT: Call = PreparedStatement("COMMIT"), {}
_ROLLBACK: Call = PreparedStatement("ROLLBACK"), {}


class _State:
    """The state of a connection of the pool."""

    __slots__ = ("deferred", "driver", "is_in_transaction", "prepared", "readers")

    def __init__(self, driver: psycopg.AsyncConnection[Any]) -> None:
        self.driver = driver
        # The names of the statements that are prepared on the connection, and the readers of their rows.
        self.prepared: set[bytes] = set()
        self.readers: dict[bytes, abc.Transformer] = {}
        # True from `begin` on, also before BEGIN is sent.
        self.is_in_transaction = False
        # Statements that are sent together with COMMIT.
        self.deferred: list[Call] = []


def begin(conn: AsyncConnection) -> None:
    """Make the next direct statement begin a transaction; sends nothing itself."""
    state = _state(conn)
    state.is_in_transaction, state.deferred = True, []


def defer(conn: AsyncConnection, *calls: Call) -> None:
    """Run statements at the end of the transaction, in the round trip of its COMMIT; their rows are not read.

    A unique violation, caused by a row that another transaction inserted meanwhile, repeats the whole transaction.
    """
    _state(conn).deferred.extend(calls)


async def commit(conn: AsyncConnection) -> None:
    """Run the deferred statements, and commit if a transaction was begun. Raises psycopg.Error."""
    state = _state(conn)
    if state.deferred or not _is_idle(state):
        await fetch_each(conn, *state.deferred, _COMMIT)


async def clear(conn: AsyncConnection) -> bool:
    """Roll back an open transaction, and say whether the connection can be used again. Raises psycopg.Error."""
    state = _state(conn)
    state.is_in_transaction, state.deferred = False, []
    if state.driver.pgconn.transaction_status in _UNFINISHED:
        await fetch_each(conn, _ROLLBACK)
    return _is_idle(state)


async def fetch(conn: AsyncConnection, statement: PreparedStatement, values: Mapping[str, Value]) -> list[Row]:
    """Run a statement and return its rows."""
    return (await fetch_each(conn, (statement, values)))[0]


async def fetch_each(conn: AsyncConnection, *calls: Call) -> list[list[Row]]:
    """Run statements one after the other in one round trip, and return the rows of each.

    If a statement fails, the statements after it do not run. Raises psycopg.Error; a connection whose state is unknown
    is closed.
    """
    state = _state(conn)
    driver = state.driver
    pgconn = driver.pgconn
    begins = state.is_in_transaction and _is_idle(state)
    new = list(dict.fromkeys([one for one, _ in calls if one.name not in state.prepared]))
    # A lone statement needs no pipeline; that saves a tenth of a lone check's time.
    pipelined = begins or bool(new) or len(calls) > 1
    if pipelined:
        pgconn.enter_pipeline_mode()
    try:
        if begins:
            pgconn.send_query_params(b"BEGIN", None)
        for statement in new:
            pgconn.send_prepare(statement.name, statement.text)
        for statement, values in calls:
            pgconn.send_query_prepared(statement.name, statement.encoded(values), result_format=pq.Format.BINARY)
        if pipelined:
            pgconn.pipeline_sync()
        results = await _results(pgconn, pipelined=pipelined)
    except BaseException:
        # The task was cancelled, or the connection is lost: Postgres may still run the statements.
        await _give_up(driver)
        raise
    if pipelined:
        pgconn.exit_pipeline_mode()
    # A prepared statement stays prepared even if the transaction is rolled back.
    state.prepared.update(
        one.name
        for one, result in zip(new, results[begins:], strict=False)
        if result.status == pq.ExecStatus.COMMAND_OK
    )
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, driver.info.encoding)
    return [
        _rows(state, statement.name, result)
        for (statement, _), result in zip(calls, results[-len(calls) :], strict=True)
    ]


def driver_connection(conn: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    """Return the driver's connection of a SQLAlchemy connection."""
    driver: psycopg.AsyncConnection[Any] = conn.sync_connection.connection.driver_connection  # type: ignore[union-attr, assignment]
    return driver


def _state(conn: AsyncConnection) -> _State:
    info: dict[str, Any] = conn.sync_connection.connection.info  # type: ignore[union-attr]  # the connection is open
    state: _State | None = info.get(_STATE)
    if state is None:
        state = info[_STATE] = _State(driver_connection(conn))
    return state


def _is_idle(state: _State) -> bool:
    return state.driver.pgconn.transaction_status == _IDLE


async def _results(pgconn: pq.abc.PGconn, *, pipelined: bool) -> list[pq.abc.PGresult]:
    """Send the queued commands, and return all their results."""
    results: list[pq.abc.PGresult] = []
    sending = pgconn.flush() != 0
    while True:
        await _readable(pgconn.socket, or_writable=sending)
        pgconn.consume_input()
        if sending:
            sending = pgconn.flush() != 0
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:  # the end of a statement
                if pgconn.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection is lost")
                if not pipelined:
                    return results
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)


async def _readable(socket: int, *, or_writable: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(socket, _wake, ready)
    if or_writable:
        loop.add_writer(socket, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(socket)
        if or_writable:
            loop.remove_writer(socket)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _give_up(driver: psycopg.AsyncConnection[Any]) -> None:
    """Cancel the running statement, so that Postgres releases its locks, and close the connection."""
    try:
        await driver.cancel_safe(timeout=_CANCEL_SECONDS_MAX)
    except psycopg.Error:
        pass  # Postgres is gone or frozen
    finally:
        driver.pgconn.finish()


def _rows(state: _State, name: bytes, result: pq.abc.PGresult) -> list[Row]:
    reader = state.readers.get(name)
    if reader is None:
        state.readers[name] = reader = Transformer(state.driver)
        reader.set_pgresult(result)
    else:  # the columns of a prepared statement never change
        reader.set_pgresult(result, set_loaders=False)
    return reader.load_rows(0, result.ntuples, tuple)


def _encoded(value: Value) -> bytes | None:
    match value:
        case None:
            return None
        case str():
            return value.encode()
        case datetime():
            return value.isoformat().encode()
        case bool():
            return b"t" if value else b"f"
        case int():
            return b"%d" % value
