"""Batching: concurrent calls share one statement or one transaction, and each call still gets its own answer.

A lone call is sent at once. Under load a batch waits until it has as many calls as the batch before it had, and at most
for a few milliseconds. The database's cost is thereby shared by all calls of a batch, while every answer is as
consistent as that of a lone call.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from billing_svc.platform import errors
from billing_svc.platform.monitoring import metrics

T = TypeVar("T")
R = TypeVar("R")

_log = structlog.get_logger(__name__)

# With more waiting calls than this the server refuses calls. At a few thousand calls a second, the queue is a tenth of
# a second's work, so accepted calls keep their latency.
QUEUE_MAX = 256
# A larger batch would not make a call cheaper, and would hold its locks for longer.
BATCH_MAX = 128
# How long a batch waits for more calls at the most. Under full load it makes batches of about fifty calls, and even the
# mean latency is then lower than without the wait.
WAIT_SECONDS_MAX = 0.006
# Every 8th batch (a probe) waits for twice as many calls: calls that still queue inside gRPC reach the batcher only if
# it waits longer. Batches of fewer than 4 calls do not probe: the wait would add latency and find no more calls.
PROBE_EVERY = 8
PROBE_FROM = 4
RETRY_AFTER_SECONDS = 0.1


class Batcher(Generic[T, R]):
    """Collects items into batches, calls `run` with each batch, and gives each item's result to its caller."""

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]],
        counted: metrics.ServerMetrics | None = None,
        note: Callable[[Sequence[R | BaseException]], None] | None = None,
    ) -> None:
        """`run` returns a result or an error for each item, in order; an error that it raises is every item's error.

        `note` gets the results after the batch's answers are sent; no caller waits for it.
        """
        self._name = name
        self._run = run
        self._note = note
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        # Only a single batch runs at a time: while Postgres works on it, the next batch gathers.
        self._batch: asyncio.Task[Sequence[R | BaseException]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_size = 1
        self._batches = 0
        # When the first of the waiting calls came.
        self._since = 0.0
        self._seen = (counted or metrics.ServerMetrics()).batch(name, lambda: len(self._waiting))

    async def submit(self, item: T) -> R:
        """Return the item's result, or raise its error. Raises Overloaded at once if too many items wait already."""
        if len(self._waiting) >= QUEUE_MAX:
            raise errors.Overloaded("the server has more calls waiting than it can answer soon", RETRY_AFTER_SECONDS)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        if not self._waiting:
            self._since = loop.time()
        self._waiting.append((item, future))
        if self._batch is None:
            self._gather()
        return await future

    def _gather(self) -> None:
        """Start the next batch now if it has enough calls, else when WAIT_SECONDS_MAX is over."""
        if len(self._waiting) >= self._company():
            self._start()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WAIT_SECONDS_MAX, self._start)

    def _company(self) -> int:
        """Return the number of calls that the next batch waits for."""
        is_probe = self._last_size >= PROBE_FROM and self._batches % PROBE_EVERY == 0
        return min(BATCH_MAX, self._last_size * 2 if is_probe else self._last_size)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # A call whose deadline passed while it waited was cancelled; it is dropped and never reaches the database.
        batch = [one for one in self._waiting[:BATCH_MAX] if not one[1].done()]
        del self._waiting[:BATCH_MAX]
        self._last_size = max(1, len(batch))
        self._batches += 1
        now = asyncio.get_running_loop().time()
        waited_seconds, self._since = now - self._since, now
        if batch:
            self._batch = asyncio.get_running_loop().create_task(self._carry_out(batch))
            self._batch.add_done_callback(functools.partial(self._end, waited_seconds))
        elif self._waiting:
            self._gather()

    async def _carry_out(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> Sequence[R | BaseException]:
        results = await self._results([item for item, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        return results

    def _end(self, waited_seconds: float, batch: asyncio.Task[Sequence[R | BaseException]]) -> None:
        self._batch = None
        if self._waiting:
            self._gather()
        if batch.cancelled():  # the process ends
            return
        results = batch.result()
        self._seen.observe_size(len(results))
        self._seen.observe_wait(waited_seconds)
        if self._note is not None:
            self._note(results)

    async def _results(self, items: Sequence[T]) -> Sequence[R | BaseException]:
        try:
            return await self._run(items)
        except errors.BillingError as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001 - a lone item's caller gets the error
            if len(items) == 1:
                return [error]
            # A defect that a single item causes must not fail the others: each item runs again by itself.
            _log.exception("batch_failed", batch=self._name, items=len(items))
            return [(await self._results([item]))[0] for item in items]
