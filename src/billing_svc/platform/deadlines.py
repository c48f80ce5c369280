"""A time limit for many items at once; the limit is the same for all of them."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class Overdue(Generic[K]):
    """The items under way, the oldest first. An item that exceeds the limit is passed to `cut_off` once.

    There is a single timer, for the oldest item, because nearly all items end long before the limit.
    """

    def __init__(self, seconds_max: float | None, cut_off: Callable[[K], object]) -> None:
        """Set the limit; None means no limit."""
        self._seconds_max = seconds_max
        self._cut_off = cut_off
        self._under_way: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of items under way."""
        return len(self._under_way)

    def begin(self, one: K) -> None:
        """Start the time of an item."""
        loop = asyncio.get_running_loop()
        self._under_way[one] = loop.time()
        if self._timer is None and self._seconds_max is not None:
            self._set(loop, self._seconds_max)

    def end(self, one: K) -> bool:
        """Stop watching an item. Returns False if it was cut off before."""
        return self._under_way.pop(one, None) is not None

    def _set(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # An empty context: the timer would otherwise keep the caller's context, and all objects in it, alive.
        self._timer = loop.call_later(seconds, self._look, loop, context=contextvars.Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._under_way:
            oldest, since = next(iter(self._under_way.items()))
            seconds_left = since + (self._seconds_max or 0) - loop.time()
            if seconds_left > 0:
                self._set(loop, seconds_left)
                return
            del self._under_way[oldest]
            self._cut_off(oldest)
