"""Polls whether Postgres can be used, and makes the process unready and ready accordingly."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import errors
from billing_svc.platform.database import transactions

_log = structlog.get_logger("readiness")

POLL_SECONDS = 1.0
# For one poll. It has its own connection, so that a busy pool is not taken for an absent Postgres.
ANSWER_SECONDS_MAX = 2.0
# A single failed poll is no outage, and a single answer no recovery: readiness would change too often.
FAILURES_TO_UNREADY = 2
ANSWERS_TO_READY = 2


class Readiness:
    """The readiness of a process. It starts as ready: the process has read its catalog from Postgres by then."""

    def __init__(
        self, database: transactions.Transactions, on_change: Callable[[bool], Awaitable[None]] | None = None
    ) -> None:
        """`database` has a connection for these polls only; `on_change` is called at every change."""
        self._database = database
        self._on_change = on_change
        self._postgres_answers = True
        self._in_a_row = 0
        self._draining = False

    def is_ready(self) -> bool:
        """Say whether this process should get calls."""
        return self._postgres_answers and not self._draining

    def drain(self) -> None:
        """Make the process unready until it ends."""
        self._draining = True

    async def follow(self, stop: asyncio.Event) -> None:
        """Poll until `stop` is set."""
        while not stop.is_set():
            await self.ask()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)

    async def ask(self) -> None:
        """Poll once; change the readiness after enough equal results in a row."""
        try:
            answers = await self._database.read(_can_be_written)
        except errors.BillingError:
            answers = False
        if answers is self._postgres_answers:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row < (ANSWERS_TO_READY if answers else FAILURES_TO_UNREADY):
            return
        self._postgres_answers, self._in_a_row = answers, 0
        if answers:
            _log.info("database_back")
        else:
            _log.error("database_away")
        if self._on_change is not None:
            await self._on_change(answers)


async def _can_be_written(connection: AsyncConnection) -> bool:
    # After a failover the old primary may be back as a standby: it answers reads and refuses writes.
    return not await connection.scalar(sa.text("SELECT pg_is_in_recovery()"))
