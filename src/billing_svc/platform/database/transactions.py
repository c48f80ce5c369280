"""The one way in which the service runs transactions.

A transaction runs in a task of its own: a caller that goes away (a client's deadline, a closed connection) does not
tear it apart. It has a time budget of its own instead, and repeats where Postgres says that a repetition may succeed.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Never, TypeVar, cast

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.platform import errors, overdue
from billing_svc.platform.database import direct

T = TypeVar("T")

_log = structlog.get_logger(__name__)

# Longer than a statement may take, shorter than what a client usually waits.
BUDGET_SECONDS = 5.0
# After the budget the statement is cancelled and the connection put in order; a server that is frozen does not answer
# even that, and the caller is told all the same.
CLEANUP_SECONDS_MAX = 1.0
# With the pauses below, this outlasts a burst of conflicts; a conflict that persists is the caller's to repeat.
ATTEMPTS_MAX = 6
# The pause before the second attempt; it doubles, up to the most. Random, so that rivals part.
PAUSE_SECONDS = 0.005
PAUSE_SECONDS_MAX = 0.1
# After a restart of Postgres every pooled connection is dead; the first one found so empties the pool, so one
# repetition is enough.
LOST_CONNECTIONS_MAX = 1

# Far below the pool's bound on a connection's age, which it then looks at.
KEPT_SECONDS_MAX = 60.0

# Postgres undid the transaction because of others; the same again may succeed.
_CONFLICTS = frozenset({"40001", "40P01"})
# Not now: lock_timeout, a read-only standby after a failover, and the two time-outs that end a session.
_NOT_NOW = frozenset({"55P03", "25006", "25P03", "25P04"})
# Not now, whole classes: connection, insufficient resources, operator intervention (shutdown, statement_timeout).
_NOT_NOW_CLASSES = frozenset({"08", "53", "57"})


class RetryTransaction(Exception):
    """A store lost a race that the same work, done again, would see: undo it all and begin anew."""


class _ConnectionLost(Exception):
    """The connection went before COMMIT was sent: nothing was written."""


class Transactions:
    """Runs work on connections of one engine."""

    def __init__(self, engine: AsyncEngine, budget_seconds: float = BUDGET_SECONDS, *, keep: bool = False) -> None:
        """`budget_seconds` bounds a whole run: waiting for a connection, all attempts, and the commit.

        With `keep` one connection stays lent between runs, until `drain`: to take one from the pool and to give it back
        is a tenth of what a lone check takes.
        """
        self._engine = engine
        self._kept = _Kept() if keep else None
        # Runs that wait for a connection of the pool; none is kept from them.
        self._waiting = 0
        # Each statement is its own transaction, which saves the round trips of BEGIN and COMMIT.
        self._autocommit_engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._budget_seconds = budget_seconds
        self._in_time: overdue.Overdue[asyncio.Task[Any]] = overdue.Overdue(budget_seconds, asyncio.Task.cancel)
        # asyncio itself keeps only weak references to tasks.
        self._under_way: set[asyncio.Task[object]] = set()

    async def run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction (READ COMMITTED) and commit it.

        `work` may run several times and must touch nothing but its connection. What it raises undoes the transaction.
        Raises `errors.LostRace` when conflicts persist, and `errors.Unavailable` when Postgres is away or too slow: the
        outcome is then unknown, and the caller repeats with the same ids.
        """
        return await self._shielded(lambda: self._transaction(work))

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work`, which only reads. Each of its statements sees what is committed when it begins."""
        return await self._shielded(lambda: self._reading(self._autocommit_engine, work))

    async def look(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work`, whose statements are direct ones, each a transaction of its own; in half the time of `read`.

        A caller that goes away ends it.
        """
        return await self._in_budget(lambda: self._reading(self._engine, work))

    async def drain(self) -> None:
        """Wait for what is under way, including what nobody waits for any more, and keep no connection."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._kept is not None:
            await self._kept.end()

    async def _shielded(self, attempt: Callable[[], Awaitable[T]]) -> T:
        task: asyncio.Task[T] = asyncio.create_task(self._in_budget(attempt))
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        try:
            # Unlike awaiting the task, this leaves it alone when the caller is cancelled.
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
            # As `asyncio.timeout` has it: our own cancellation is taken back, and another one beside it prevails.
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
            except psycopg.errors.UniqueViolation as error:  # of what was deferred
                raise RetryTransaction from error
            except psycopg.Error as error:
                if await self._is_lost(connection):
                    # It may have been committed: only the caller's id tells, so only the caller may repeat.
                    raise _away() from error
                _raise_for(error, is_lost=False)
            if connection.in_transaction():  # SQLAlchemy began one of its own for ordinary statements; it sends nothing
                await connection.commit()
            return result
        finally:
            await self._take_back(connection)

    async def _reading(self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        connection = await self._lend(engine)
        try:
            result = await work(connection)
            if engine is self._engine and connection.in_transaction():  # an ordinary statement began one
                await connection.commit()
        except (sa.exc.DBAPIError, psycopg.Error) as error:
            _raise_for(error, is_lost=await self._is_lost(connection))
        else:
            return result
        finally:
            await self._take_back(connection)

    async def _lend(self, engine: AsyncEngine) -> AsyncConnection:
        """Return a connection with nothing under way on it: the one that was kept, or one of the pool's."""
        if self._kept is not None and engine is self._engine:
            kept = await self._kept.take()
            if kept is not None:
                return kept
        try:
            return _idle_one(engine) or await self._wait_for_one(engine)
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            # Refused, unreachable, too many, wrong password; or the pool is exhausted.
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
        """Keep a connection, or return it to the pool, with nothing under way; close it if that cannot be had."""
        is_fit = False
        try:
            is_fit = not connection.invalidated and await direct.clear(connection)
        except psycopg.Error:
            pass  # lost, or it will be, below
        finally:
            if not is_fit:
                if not connection.invalidated:
                    await connection.invalidate()
                await _give_back(connection)
            elif self._kept is None or self._waiting or not self._kept.keep(connection, self._engine):
                await _give_back(connection)

    async def _is_lost(self, connection: AsyncConnection) -> bool:
        """Say whether a connection is; then no other one is kept that may have died with it."""
        if connection.invalidated:  # SQLAlchemy noticed by itself, and has done the same
            return True
        if not direct.driver_connection(connection).closed:
            return False
        if self._kept is not None:
            await self._kept.end()
        await self._engine.dispose()
        return True


class _Kept:
    """One connection that stays lent between the runs, for a while: the pool looks at ages when it lends."""

    def __init__(self) -> None:
        self._connection: AsyncConnection | None = None
        self._until = 0.0

    async def take(self) -> AsyncConnection | None:
        """Return it, if it is there and still young."""
        connection, self._connection = self._connection, None
        if connection is not None and asyncio.get_running_loop().time() > self._until:
            await _give_back(connection)
            return None
        return connection

    def keep(self, connection: AsyncConnection, engine: AsyncEngine) -> bool:
        """Say whether this one stays; not one that has options of its own, or comes second."""
        if self._connection is not None or connection.engine is not engine or connection.in_transaction():
            return False
        now = asyncio.get_running_loop().time()
        if now > self._until:
            self._until = now + KEPT_SECONDS_MAX
        self._connection = connection
        return True

    async def end(self) -> None:
        """Give it back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _give_back(connection)


def _idle_one(engine: AsyncEngine) -> AsyncConnection | None:
    """Lend what lies ready in the pool: without `engine.connect()`'s task switches, which take six times as long."""
    if engine.get_execution_options():  # to set one takes a switch
        return None
    try:
        return AsyncConnection(engine, engine.sync_engine.connect())
    except sa.exc.MissingGreenlet:  # none is ready: it would have to wait, or to connect
        return None


async def _give_back(connection: AsyncConnection) -> None:
    if connection.in_transaction() or connection.engine.get_execution_options():
        await connection.close()
    else:  # nothing is to be reset, so nothing need switch tasks
        connection.sync_connection.close()  # type: ignore[union-attr]  # of a connection that is open


def _refuse_if_failed(connection: AsyncConnection) -> None:
    """Raise if a statement failed and `work` went on: Postgres would answer COMMIT with a silent ROLLBACK."""
    status = direct.driver_connection(connection).info.transaction_status
    if status is psycopg.pq.TransactionStatus.INERROR:
        raise RuntimeError("work went on after a failed statement; undo that with a savepoint, or raise")


def _raise_for(error: sa.exc.DBAPIError | psycopg.Error, *, is_lost: bool) -> Never:
    """Say what a statement's failure means to the transaction; a defect of ours stays what it is."""
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
    """Take the outcome that no caller will; a defect must not vanish with its caller."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, errors.BillingError):
        _log.error("abandoned_transaction_failed", exc_info=error)
