"""A bound on the time of many things at once, each of which may take equally long."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class Overdue(Generic[K]):
    """What is under way, the oldest first; what lasts too long is handed to `cut_off`, once.

    One timer is set, for the oldest, and not one for each: nearly everything ends long before its time.
    """

    def __init__(self, seconds_max: float | None, cut_off: Callable[[K], object]) -> None:
        """None: whatever it is may last."""
        self._seconds_max = seconds_max
        self._cut_off = cut_off
        self._under_way: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how much is under way."""
        return len(self._under_way)

    def begin(self, one: K) -> None:
        """Watch it from now on."""
        loop = asyncio.get_running_loop()
        self._under_way[one] = loop.time()
        if self._timer is None and self._seconds_max is not None:
            self._set(loop, self._seconds_max)

    def end(self, one: K) -> bool:
        """Watch it no longer; False: it was cut off."""
        return self._under_way.pop(one, None) is not None

    def _set(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # In nobody's context, which would keep all that is in it alive.
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
