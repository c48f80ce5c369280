"""A clock that stands still until it is moved, so that a boundary is met to the microsecond."""

from datetime import datetime, timedelta

from billing_svc.platform import clock


class StillClock(clock.Clock):
    """The service's clock, stopped."""

    def __init__(self, at: datetime) -> None:
        super().__init__()
        self._at = at

    def now(self) -> datetime:
        return self._at

    def advance(self, by: timedelta) -> None:
        self._at += by

    def set(self, at: datetime) -> None:
        """Move to an instant, also back."""
        self._at = at
