"""Whether Postgres can be used, asked again and again; turns a process unready and ready by itself."""

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
# For one question on a connection of its own, so that a busy pool is not taken for an absent Postgres.
ANSWER_SECONDS_MAX = 2.0
# One lost question is no outage, and one answer no recovery: callers would be sent to and fro.
FAILURES_TO_UNREADY = 2
ANSWERS_TO_READY = 2


class Readiness:
    """Ready from the start: a process begins to serve only once it has read its catalog from Postgres."""

    def __init__(
        self, database: transactions.Transactions, on_change: Callable[[bool], Awaitable[None]] | None = None
    ) -> None:
        """`database` has a connection for this alone; `on_change` hears of every change."""
        self._database = database
        self._on_change = on_change
        self._postgres_answers = True
        self._in_a_row = 0
        self._draining = False

    def is_ready(self) -> bool:
        """Say whether calls should come here."""
        return self._postgres_answers and not self._draining

    def drain(self) -> None:
        """Be unready from now on."""
        self._draining = True

    async def follow(self, stop: asyncio.Event) -> None:
        """Ask until `stop`."""
        while not stop.is_set():
            await self.ask()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)

    async def ask(self) -> None:
        """Ask once, and change when enough answers in a row say so."""
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
    # After a failover the old primary may be back as a standby, which answers and takes nothing.
    return not await connection.scalar(sa.text("SELECT pg_is_in_recovery()"))
