"""The sandbox's two notions of time. Nothing else in this package asks for the time."""

import dataclasses
import time


@dataclasses.dataclass(slots=True)
class SandboxClock:
    """Stripe's time is the wall's plus an offset in seconds, which is kept in the state so that a restart keeps it."""

    offset_seconds: int = 0

    def now(self) -> int:
        """Unix seconds by which objects are dated and fall due, whole as in Stripe's API."""
        return int(time.time()) + self.offset_seconds

    @staticmethod
    def wall() -> float:
        """Unix seconds of the real world: for signatures and retries, since receivers' clocks do not move with ours."""
        return time.time()
