"""Limits how many calls a second all workers together make to Stripe.

Each limit is a row in Postgres with the instant from which its next call is free. A statement reserves calls by moving
that instant on, so the processes' calls follow each other at the limit's interval. Postgres tells how long to wait, not
when to call, so the processes' clocks do not matter. See ADR 0024.
"""

import asyncio
import collections

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import errors
from billing_svc.platform.database import transactions

# A statement reserves a call for each caller that waits in this process, but at most the calls of this time. A process
# that dies or stops wastes no more.
BLOCK_SECONDS_MAX = 0.5
# A stored instant further ahead than this does not come from waiting callers: the clock of Postgres has gone back, for
# example by a failover.
AHEAD_SECONDS_MAX = 5.0
# Then a waiting caller gives up. A lease of a Stripe object (30 seconds) must outlast this, the call and a transaction.
WAIT_SECONDS_MAX = 10.0
# Stripe admits 25 a second for each endpoint; the rest is left to the calls that a caller of the service waits for.
ENDPOINT_CALLS_PER_SECOND = 20
# Stripe admits 1,000 a second here.
_UNLIMITED_ENDPOINTS = frozenset({"POST /v1/billing/meter_events"})
_ALL = "all"

_RESERVE = sa.text("""
INSERT INTO stripe_call_limits AS stored (name, free_at)
VALUES (:name, clock_timestamp() + make_interval(secs => :seconds))
ON CONFLICT (name) DO UPDATE SET free_at = make_interval(secs => :seconds) + greatest(
    clock_timestamp(), least(stored.free_at, clock_timestamp() + make_interval(secs => :ahead_max)))
RETURNING CAST(extract(epoch FROM free_at - clock_timestamp()) AS double precision) - :seconds
""")


class CallLimits:
    """The limits of a process's calls to Stripe, which it shares with all other processes that have limits."""

    def __init__(self, database: transactions.Transactions, per_second: float) -> None:
        self._database = database
        self._per_second = per_second
        self._limits: dict[str, _CallLimit] = {}

    async def wait(self, endpoint: str) -> None:
        """Return when a call of an endpoint may be made.

        Raises StripeUnavailable after WAIT_SECONDS_MAX, and Unavailable if Postgres cannot be reached.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._limit(_ALL, self._per_second).wait()
                if self._per_second > ENDPOINT_CALLS_PER_SECOND and endpoint not in _UNLIMITED_ENDPOINTS:
                    await self._limit(endpoint, ENDPOINT_CALLS_PER_SECOND).wait()
        except TimeoutError as error:
            raise errors.StripeUnavailable("too many calls to Stripe wait; send the same call again", 2.0) from error

    def _limit(self, name: str, per_second: float) -> "_CallLimit":
        if name not in self._limits:
            self._limits[name] = _CallLimit(self._database, name, per_second)
        return self._limits[name]


class _CallLimit:
    """A single limit."""

    def __init__(self, database: transactions.Transactions, name: str, per_second: float) -> None:
        self._database = database
        self._name = name
        self._interval_seconds = 1 / per_second
        self._block_max = max(1, int(BLOCK_SECONDS_MAX * per_second))
        # When each reserved call may be made, by the event loop's clock.
        self._reserved: collections.deque[float] = collections.deque()
        self._waiting = 0
        # Callers pass one after another in the order of their arrival. While one waits for its time, the next block's
        # callers gather.
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Return when a call may be made."""
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            async with self._turn:
                # Time that has passed unused must not allow a burst, also after the event loop was busy.
                while self._reserved and self._reserved[0] < loop.time() - self._interval_seconds:
                    self._reserved.popleft()
                if not self._reserved:
                    await self._reserve(min(self._waiting, self._block_max))
                await asyncio.sleep(self._reserved.popleft() - loop.time())
        finally:
            self._waiting -= 1

    async def _reserve(self, calls: int) -> None:
        values = {
            "name": self._name,
            "seconds": calls * self._interval_seconds,
            "ahead_max": AHEAD_SECONDS_MAX,
        }

        async def reserve(conn: AsyncConnection) -> float:
            seconds: float = (await conn.execute(_RESERVE, values)).scalar_one()
            return seconds

        wait_seconds = await self._database.run(reserve)
        first = asyncio.get_running_loop().time() + max(0, wait_seconds)
        self._reserved.extend(first + n * self._interval_seconds for n in range(calls))
