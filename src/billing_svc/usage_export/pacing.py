"""Limits how many usage calls per second this process makes to Stripe."""

import asyncio


class Pace:
    """Lets callers pass one after another at a fixed rate; unused time does not allow a later burst."""

    def __init__(self, per_second: float) -> None:
        self._interval_seconds = 1 / per_second
        self._next_at = 0.0

    async def wait(self) -> None:
        """Return when the caller may make its call."""
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._next_at)
        self._next_at = at + self._interval_seconds
        await asyncio.sleep(at - loop.time())
