"""Grouping: concurrent calls share one statement or one transaction, and each still gets its own answer.

A lone call goes out at once. Under load a batch waits until as many calls have come as the last one had, and at most
for a few milliseconds. What a call costs the database is thereby divided by the size of its batch, while every answer
is as consistent as if it had been asked alone.
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

# Past this many waiting calls the server sheds: at a few thousand calls a second it is the work of a tenth of a second,
# so what is accepted keeps its latency.
QUEUE_MAX = 256
# A larger batch costs no less for each call, and holds its locks for longer.
BATCH_MAX = 128
# How long a batch waits for company at the most. Under a full load it brings batches of some fifty calls, and then even
# the mean latency is lower than without it.
WAIT_SECONDS_MAX = 0.006
# Every so many batches one waits for twice as many calls: callers whose calls still queue inside gRPC come into sight
# only when they are given time. Up to a handful of calls, that would cost latency and find nobody.
PROBE_EVERY = 8
PROBE_FROM = 4
RETRY_AFTER_SECONDS = 0.1


class Batcher(Generic[T, R]):
    """Collects items, and answers each from a batch that `run` carries out."""

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]],
        counted: metrics.Server | None = None,
        note: Callable[[Sequence[R | BaseException]], None] | None = None,
    ) -> None:
        """`run` returns a result or an error for each item, in order; what it raises itself is everyone's error.

        `note` is given them once they are on their way: no answer waits for it.
        """
        self._name = name
        self._run = run
        self._note = note
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        # One at a time: while Postgres works on it, the next one gathers.
        self._batch: asyncio.Task[Sequence[R | BaseException]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_size = 1
        self._batches = 0
        # When the first of those who wait came.
        self._since = 0.0
        self._seen = (counted or metrics.Server()).batch(name, lambda: len(self._waiting))

    async def submit(self, item: T) -> R:
        """Return the item's result, or raise its error. Raises Overloaded at once when too many wait already."""
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
        """Start the next batch if enough calls have come for it, else when its time is over."""
        if len(self._waiting) >= self._company():
            self._start()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WAIT_SECONDS_MAX, self._start)

    def _company(self) -> int:
        """Return how many calls are worth waiting for."""
        is_probe = self._last_size >= PROBE_FROM and self._batches % PROBE_EVERY == 0
        return min(BATCH_MAX, self._last_size * 2 if is_probe else self._last_size)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # A call whose deadline has passed was cancelled by then: it never reaches the database.
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
        except Exception as error:  # noqa: BLE001 - each item gets it as its own
            if len(items) == 1:
                return [error]
            # A defect that one item brings out must not fail the others.
            _log.exception("batch_failed", batch=self._name, items=len(items))
            return [(await self._results([item]))[0] for item in items]
