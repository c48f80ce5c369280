"""The service's clock. Nothing else asks the machine for the time; rules are given `now`."""

from datetime import UTC, datetime, timedelta


class Clock:
    """UTC time, shifted by an offset (zero but in tests)."""

    def __init__(self, offset: timedelta = timedelta()) -> None:
        self._offset = offset

    def now(self) -> datetime:
        """Return the current instant, in UTC."""
        return datetime.now(UTC) + self._offset

    def advance(self, by: timedelta) -> None:
        """Move the clock; for tests."""
        self._offset += by
