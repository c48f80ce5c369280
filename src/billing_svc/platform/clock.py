"""The service's clock. Nothing else asks the machine for the time; rules are given `now`."""

import mmap
from datetime import UTC, datetime, timedelta
from pathlib import Path

from billing_svc.platform import settings

# One signed number of seconds, in the machine's own order.
_OFFSET_BYTES = 8


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


class SharedClock(Clock):
    """UTC time, shifted by the seconds in a file that the sandbox writes: all who read it move at the same instant."""

    def __init__(self, file: Path) -> None:
        """Read the file from now on. Raises SettingsError when it is not there yet."""
        super().__init__()
        try:
            with file.open("rb") as opened:
                # Mapped, so that a look at the clock costs no call to the system.
                self._seconds = memoryview(mmap.mmap(opened.fileno(), _OFFSET_BYTES, prot=mmap.PROT_READ)).cast("q")
        except (OSError, ValueError):
            raise settings.SettingsError(f"BILLING_CLOCK_FILE: {file} is not the sandbox's clock") from None

    def now(self) -> datetime:
        """Return the current instant of the sandbox."""
        return super().now() + timedelta(seconds=self._seconds[0])


def from_settings(options: settings.DatabaseSettings) -> Clock:
    """Return the clock of this process: the machine's, but in `dev` beside the sandbox, which has one to move."""
    return Clock() if options.clock_file is None else SharedClock(options.clock_file)
