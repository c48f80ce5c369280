"""A bound on how many calls a second this process makes at Stripe for usage."""

import asyncio


class Pace:
    """Lets callers through one after the other, at an even pace; idle time is not saved up."""

    def __init__(self, per_second: float) -> None:
        self._interval_seconds = 1 / per_second
        self._next_at = 0.0

    async def wait(self) -> None:
        """Return when it is one's turn."""
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._next_at)
        self._next_at = at + self._interval_seconds
        await asyncio.sleep(at - loop.time())
