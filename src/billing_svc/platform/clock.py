"""The service's clock. No other module asks the machine for the time; rules get `now` as an argument."""

import mmap
from datetime import UTC, datetime, timedelta
from pathlib import Path

from billing_svc.platform import settings

# A signed 64-bit number of seconds, in the machine's byte order.
_OFFSET_BYTES = 8


class Clock:
    """UTC time, shifted by an offset, which is zero outside of tests."""

    def __init__(self, offset: timedelta = timedelta()) -> None:
        self._offset = offset

    def now(self) -> datetime:
        """Return the current instant, in UTC."""
        return datetime.now(UTC) + self._offset

    def advance(self, by: timedelta) -> None:
        """Move the clock; for tests."""
        self._offset += by


class SharedClock(Clock):
    """UTC time, shifted by the seconds in a file that the sandbox writes.

    All processes that read the file change their time at the same instant.
    """

    def __init__(self, file: Path) -> None:
        """Map the file into memory. Raises SettingsError if the file does not exist or is not a clock."""
        super().__init__()
        try:
            with file.open("rb") as opened:
                # The file is mapped, so that `now` needs no system call.
                self._seconds = memoryview(mmap.mmap(opened.fileno(), _OFFSET_BYTES, prot=mmap.PROT_READ)).cast("q")
        except (OSError, ValueError):
            raise settings.SettingsError(f"BILLING_CLOCK_FILE: {file} is not the sandbox's clock") from None

    def now(self) -> datetime:
        """Return the current instant of the sandbox."""
        return super().now() + timedelta(seconds=self._seconds[0])


def from_settings(options: settings.DatabaseSettings) -> Clock:
    """Return this process's clock: the machine's, or in `dev` the sandbox's, which the developer can move."""
    return Clock() if options.clock_file is None else SharedClock(options.clock_file)
