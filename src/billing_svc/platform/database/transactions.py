"""Runs every transaction of the service.

A transaction runs in its own task, so a caller that goes away (a client's deadline, a closed connection) does not
interrupt it. The task has a time budget instead, and repeats the transaction if Postgres says that a repetition may
succeed.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Never, TypeVar, cast

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.platform import deadlines, errors
from billing_svc.platform.database import direct

T = TypeVar("T")

_log = structlog.get_logger(__name__)

# Longer than a statement may take, shorter than what a client usually waits.
BUDGET_SECONDS = 5.0
# After the budget, the statement is cancelled and the connection cleaned up. A frozen Postgres does not answer the
# cancellation either; after this time the caller gets the error anyway.
CLEANUP_SECONDS_MAX = 1.0
# With the pauses below, this is enough for a burst of conflicts. If conflicts persist, the caller repeats the call.
ATTEMPTS_MAX = 6
# The pause before the second attempt; it doubles up to the maximum. The pause is random, so that two transactions in
# conflict do not meet again.
PAUSE_SECONDS = 0.005
PAUSE_SECONDS_MAX = 0.1
# After a restart of Postgres every pooled connection is dead. The first dead connection empties the pool, so a single
# repetition is enough.
LOST_CONNECTIONS_MAX = 1

# How long a connection is kept. Far below the maximum age of a connection, which the pool checks when it lends.
KEPT_SECONDS_MAX = 60.0

# Postgres rolled the transaction back because of concurrent transactions; a repetition may succeed.
_CONFLICTS = frozenset({"40001", "40P01"})
# Unavailable for now: lock_timeout, a read-only standby after a failover, and the two time-outs that end a session.
_NOT_NOW = frozenset({"55P03", "25006", "25P03", "25P04"})
# Unavailable for now, by class: connection, insufficient resources, operator intervention (shutdown,
# statement_timeout).
_NOT_NOW_CLASSES = frozenset({"08", "53", "57"})


class RetryTransaction(Exception):
    """A store lost a race against a concurrent transaction: the transaction is rolled back, and the work runs again."""


class _ConnectionLost(Exception):
    """The connection was lost before COMMIT was sent: nothing was written."""


class Transactions:
    """Runs work on the connections of an engine."""

    def __init__(self, engine: AsyncEngine, budget_seconds: float = BUDGET_SECONDS, *, keep: bool = False) -> None:
        """`budget_seconds` bounds a whole run: waiting for a connection, all attempts, and the commit.

        With `keep`, a connection is kept out of the pool between runs, until `drain`: taking a connection from the pool
        and returning it takes a tenth of the time of a lone check.
        """
        self._engine = engine
        self._kept = _Kept() if keep else None
        # Runs that wait for a connection of the pool. While there are any, no connection is kept.
        self._waiting = 0
        # Each statement is its own transaction, which saves the round trips of BEGIN and COMMIT.
        self._autocommit_engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._budget_seconds = budget_seconds
        self._in_time: deadlines.Overdue[asyncio.Task[Any]] = deadlines.Overdue(budget_seconds, asyncio.Task.cancel)
        # asyncio itself keeps only weak references to tasks.
        self._under_way: set[asyncio.Task[object]] = set()

    async def run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction (READ COMMITTED) and commit it.

        `work` may run several times and must touch nothing but its connection. An error that it raises rolls the
        transaction back. Raises `errors.LostRace` if conflicts persist, and `errors.Unavailable` if Postgres cannot be
        reached or is too slow: the outcome is then unknown, and the caller repeats the call with the same ids.
        """
        return await self._shielded(lambda: self._transaction(work))

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work`, which only reads. Each statement sees the data that was committed when the statement began."""
        return await self._shielded(lambda: self._reading(self._autocommit_engine, work))

    async def look(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work`, which only reads, by direct statements, each its own transaction. Takes half the time of `read`.

        The work is cancelled if its caller goes away.
        """
        return await self._in_budget(lambda: self._reading(self._engine, work))

    async def drain(self) -> None:
        """Wait for all work under way, also if its caller has gone, and return the kept connection to the pool."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._kept is not None:
            await self._kept.end()

    async def _shielded(self, attempt: Callable[[], Awaitable[T]]) -> T:
        task: asyncio.Task[T] = asyncio.create_task(self._in_budget(attempt))
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        try:
            # `asyncio.wait` does not cancel the task when the caller is cancelled; awaiting the task would.
            done, _ = await asyncio.wait({task}, timeout=self._budget_seconds + CLEANUP_SECONDS_MAX)
        except asyncio.CancelledError:
            task.add_done_callback(_report_abandoned)
            raise
        if not done:
            task.add_done_callback(_report_abandoned)
            raise _too_slow()
        return task.result()

    def _forget(self, task: asyncio.Task[T]) -> None:
        self._under_way.discard(task)

    async def _in_budget(self, attempt: Callable[[], Awaitable[T]]) -> T:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelled_before = task.cancelling()
        self._in_time.begin(task)
        try:
            result = await self._attempts(attempt)
        except BaseException as error:
            # As in `asyncio.timeout`: the budget's own cancellation becomes an error, any other cancellation is raised.
            if self._in_time.end(task) or task.uncancel() > cancelled_before:
                raise
            if not isinstance(error, asyncio.CancelledError):
                raise
            raise _too_slow() from None
        if not self._in_time.end(task):
            task.uncancel()
        return result

    async def _attempts(self, attempt: Callable[[], Awaitable[T]]) -> T:
        lost_connections = 0
        conflicts = 0
        while True:
            try:
                return await attempt()
            except _ConnectionLost as error:
                lost_connections += 1
                if lost_connections > LOST_CONNECTIONS_MAX:
                    raise _away() from error
            except RetryTransaction as error:
                conflicts += 1
                if conflicts == ATTEMPTS_MAX:
                    raise errors.LostRace("concurrent changes won every time; send the same call again") from error
                pause_seconds_max = min(PAUSE_SECONDS * 2**conflicts, PAUSE_SECONDS_MAX)
                await asyncio.sleep(random.uniform(0, pause_seconds_max))  # noqa: S311 - a pause is no secret

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        connection = await self._lend(self._engine)
        try:
            direct.begin(connection)
            try:
                result = await work(connection)
            except (sa.exc.DBAPIError, psycopg.Error) as error:
                _raise_for(error, is_lost=await self._is_lost(connection))
            _refuse_if_failed(connection)
            try:
                await direct.commit(connection)
            except psycopg.errors.UniqueViolation as error:  # by a deferred statement
                raise RetryTransaction from error
            except psycopg.Error as error:
                if await self._is_lost(connection):
                    # The transaction may have been committed. Only the caller, with the same id, can repeat it safely.
                    raise _away() from error
                _raise_for(error, is_lost=False)
            if connection.in_transaction():  # SQLAlchemy's own state after ordinary statements; sends nothing
                await connection.commit()
            return result
        finally:
            await self._take_back(connection)

    async def _reading(self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        connection = await self._lend(engine)
        try:
            result = await work(connection)
            if engine is self._engine and connection.in_transaction():  # an ordinary statement began a transaction
                await connection.commit()
        except (sa.exc.DBAPIError, psycopg.Error) as error:
            _raise_for(error, is_lost=await self._is_lost(connection))
        else:
            return result
        finally:
            await self._take_back(connection)

    async def _lend(self, engine: AsyncEngine) -> AsyncConnection:
        """Return an idle connection: the kept connection, or a connection of the pool."""
        if self._kept is not None and engine is self._engine:
            kept = await self._kept.take()
            if kept is not None:
                return kept
        try:
            return _idle_one(engine) or await self._wait_for_one(engine)
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            # Postgres refuses or cannot be reached, has too many connections, the password is wrong, or the pool is
            # exhausted.
            raise _away() from error

    async def _wait_for_one(self, engine: AsyncEngine) -> AsyncConnection:
        self._waiting += 1
        try:
            if self._kept is not None:
                await self._kept.end()
            return await engine.connect()
        finally:
            self._waiting -= 1

    async def _take_back(self, connection: AsyncConnection) -> None:
        """Roll back what is under way, then keep the connection or return it to the pool; close it if that fails."""
        is_fit = False
        try:
            is_fit = not connection.invalidated and await direct.clear(connection)
        except psycopg.Error:
            pass  # the connection is lost, or is closed below
        finally:
            if not is_fit:
                if not connection.invalidated:
                    await connection.invalidate()
                await _give_back(connection)
            elif self._kept is None or self._waiting or not self._kept.keep(connection, self._engine):
                await _give_back(connection)

    async def _is_lost(self, connection: AsyncConnection) -> bool:
        """Say whether a connection is lost; if so, close the kept and the pooled connections: they may be dead too."""
        if connection.invalidated:  # SQLAlchemy noticed the loss and has emptied the pool
            return True
        if not direct.driver_connection(connection).closed:
            return False
        if self._kept is not None:
            await self._kept.end()
        await self._engine.dispose()
        return True


class _Kept:
    """A connection that is kept between runs, for a limited time: the pool checks a connection's age when it lends."""

    def __init__(self) -> None:
        self._connection: AsyncConnection | None = None
        self._until = 0.0

    async def take(self) -> AsyncConnection | None:
        """Return the kept connection; None if there is none or it was kept for too long."""
        connection, self._connection = self._connection, None
        if connection is not None and asyncio.get_running_loop().time() > self._until:
            await _give_back(connection)
            return None
        return connection

    def keep(self, connection: AsyncConnection, engine: AsyncEngine) -> bool:
        """Keep a connection; returns False if another is kept already, or this has its own execution options."""
        if self._connection is not None or connection.engine is not engine or connection.in_transaction():
            return False
        now = asyncio.get_running_loop().time()
        if now > self._until:
            self._until = now + KEPT_SECONDS_MAX
        self._connection = connection
        return True

    async def end(self) -> None:
        """Return the kept connection to the pool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _give_back(connection)


def _idle_one(engine: AsyncEngine) -> AsyncConnection | None:
    """Return an idle connection of the pool; None if there is none.

    `engine.connect()` switches tasks and takes six times as long.
    """
    if engine.get_execution_options():  # setting an option needs a task switch
        return None
    try:
        return AsyncConnection(engine, engine.sync_engine.connect())
    except sa.exc.MissingGreenlet:  # no connection is idle: SQLAlchemy would wait or connect, which needs a switch
        return None


async def _give_back(connection: AsyncConnection) -> None:
    if connection.in_transaction() or connection.engine.get_execution_options():
        await connection.close()
    else:  # there is nothing to reset, so no task switch is needed
        connection.sync_connection.close()  # type: ignore[union-attr]  # not None: the connection is open


def _refuse_if_failed(connection: AsyncConnection) -> None:
    """Raise if a statement failed and `work` continued: Postgres would answer COMMIT with a silent ROLLBACK."""
    status = direct.driver_connection(connection).info.transaction_status
    if status is psycopg.pq.TransactionStatus.INERROR:
        raise RuntimeError("the work continued after a failed statement; use a savepoint, or let the error pass")


def _raise_for(error: sa.exc.DBAPIError | psycopg.Error, *, is_lost: bool) -> Never:
    """Raise the error that a statement's failure means to the transaction; a defect of our code is raised unchanged."""
    if is_lost:
        raise _ConnectionLost from error
    sqlstate: str = getattr(error.orig if isinstance(error, sa.exc.DBAPIError) else error, "sqlstate", None) or ""
    if sqlstate in _CONFLICTS:
        raise RetryTransaction from error
    if sqlstate in _NOT_NOW or sqlstate[:2] in _NOT_NOW_CLASSES:
        raise _away() from error
    raise error


def _away() -> errors.Unavailable:
    return errors.Unavailable("the database is not available now; send the same call again")


def _too_slow() -> errors.Unavailable:
    return errors.Unavailable("the database took too long; the outcome is unknown, so send the same call again")


def _report_abandoned(task: asyncio.Task[T]) -> None:
    """Log a defect in a transaction whose caller has gone; otherwise the error would be lost."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, errors.BillingError):
        _log.error("abandoned_transaction_failed", exc_info=error)
