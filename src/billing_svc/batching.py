"""Grouping: concurrent calls share one statement or one transaction, and each still gets its own answer.

A lone call goes out at once. With more calls under way a batch waits for company while calls keep arriving, and at the
most for a few milliseconds. What a call costs the database is thereby divided by the size of its batch, while every answer
is as consistent as if it had been asked alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from billing_svc import errors

T = TypeVar("T")
R = TypeVar("R")

_log = structlog.get_logger(__name__)

# Past this many waiting calls the server sheds: at a few thousand calls a second it is the work of a tenth of a second,
# so what is accepted keeps its latency.
QUEUE_MAX = 512
# A larger batch costs no less for each call, and holds its locks for longer.
BATCH_MAX = 256
# Two, so that one is prepared and answered while Postgres works on the other.
BATCHES_AT_ONCE = 2
# Up to this many calls under way, waiting for company would cost latency and gain nothing.
CALLS_WITHOUT_WAIT = 3
# A batch closes when no call has arrived for this long: the shortest time that the event loop can wait.
QUIET_SECONDS = 0.001
# And it closes after this long in any case. Under a full load it brings batches of some fifty calls, and then even the
# mean latency is lower than without it.
WAIT_SECONDS_MAX = 0.006
RETRY_AFTER_SECONDS = 0.1


class Batcher(Generic[T, R]):
    """Collects items, and answers each from a batch that `run` carries out."""

    def __init__(self, name: str, run: Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]]) -> None:
        """`run` returns a result or an error for each item, in order; what it raises itself is everyone's error."""
        self._name = name
        self._run = run
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None
        # asyncio itself keeps only weak references to tasks.
        self._batches: set[asyncio.Task[None]] = set()

    async def submit(self, item: T) -> R:
        """Return the item's result, or raise its error. Raises Overloaded at once when too many wait already."""
        if len(self._waiting) >= QUEUE_MAX:
            raise errors.Overloaded("the server has more calls waiting than it can answer soon", RETRY_AFTER_SECONDS)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._timer is None and len(self._batches) < BATCHES_AT_ONCE:
            self._arm(loop)
        return await future

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a batch now, or when calls have ceased to arrive."""
        if len(self._waiting) + self._under_way <= CALLS_WITHOUT_WAIT:
            self._start()
        else:
            self._wait(loop, loop.time() + WAIT_SECONDS_MAX)

    def _wait(self, loop: asyncio.AbstractEventLoop, latest: float) -> None:
        arrived = len(self._waiting)

        def look() -> None:
            if arrived < len(self._waiting) < BATCH_MAX and loop.time() < latest:
                self._wait(loop, latest)
            else:
                self._start()

        self._timer = loop.call_later(QUIET_SECONDS, look)

    def _start(self) -> None:
        self._timer = None
        # A call whose deadline has passed was cancelled by then: it never reaches the database.
        batch = [one for one in self._waiting[:BATCH_MAX] if not one[1].done()]
        del self._waiting[:BATCH_MAX]
        if batch:
            self._under_way += len(batch)
            task = asyncio.get_running_loop().create_task(self._carry_out(batch))
            self._batches.add(task)
            task.add_done_callback(self._end)

    async def _carry_out(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        results = await self._results([item for item, _ in batch])
        self._under_way -= len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        if self._waiting and self._timer is None:
            self._arm(asyncio.get_running_loop())

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
