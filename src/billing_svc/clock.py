"""The service's clock. Nothing else asks the machine for the time; rules are given `now`."""

from datetime import UTC, datetime, timedelta


class Clock:
    """UTC time, shifted by a fixed offset (zero but in tests and `dev`)."""

    def __init__(self, offset: timedelta = timedelta()) -> None:
        self._offset = offset

    def now(self) -> datetime:
        """Return the current instant, in UTC."""
        return datetime.now(UTC) + self._offset

    def advance(self, by: timedelta) -> None:
        """Move the clock; for tests and `dev`."""
        self._offset += by
