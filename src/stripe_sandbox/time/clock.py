"""The sandbox's time and the real time; other modules of this package read no clock."""

import mmap
import pathlib
import time

OFFSET_BYTES = 8
"""A signed number of seconds in the machine's byte order; all readers of the file are on the same machine."""


class SandboxClock:
    """The sandbox's time: the real time plus an offset in seconds, which `timeline` stores in the state.

    A shared file contains the offset too, for programs whose clocks move with this clock. They map the file into their
    memory, where eight bytes are written at once, so all of them see the change at the same moment.
    """

    def __init__(self, shared_file: pathlib.Path | None = None) -> None:
        self._offset_seconds = 0
        self._shared = _mapped(shared_file) if shared_file else None

    @property
    def offset_seconds(self) -> int:
        """By how many seconds the sandbox's time is ahead of the real time."""
        return self._offset_seconds

    def set_offset(self, seconds: int) -> None:
        """Set the offset, for this process and for all readers of the shared file."""
        self._offset_seconds = seconds
        if self._shared is not None:
            self._shared[0] = seconds

    def now(self) -> int:
        """Return the sandbox's time in whole unix seconds, as in Stripe's API; objects are dated and due by it."""
        return int(time.time()) + self._offset_seconds

    @staticmethod
    def wall() -> float:
        """Return the real unix time, for signatures and retries: receivers' clocks do not move with the sandbox's."""
        return time.time()


def _mapped(file: pathlib.Path) -> "memoryview[int]":
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        # The file is never replaced: readers would keep the old file mapped.
        opened.truncate(OFFSET_BYTES)
        return memoryview(mmap.mmap(opened.fileno(), OFFSET_BYTES)).cast("q")
