"""The sandbox's two notions of time. Nothing else in this package asks for the time."""

import mmap
import pathlib
import time

OFFSET_BYTES = 8
"""One signed number of seconds, in the machine's own order: the readers of the file are on the same machine."""


class SandboxClock:
    """Stripe's time is the wall's plus an offset in seconds, which is kept in the state so that a restart keeps it.

    With a shared file the offset stands there too, for programs whose clocks move with this one: mapped into their
    memory, it changes for all of them at once, because a number of eight bytes is written in one piece.
    """

    def __init__(self, shared_file: pathlib.Path | None = None) -> None:
        self._offset_seconds = 0
        self._shared = _mapped(shared_file) if shared_file else None

    @property
    def offset_seconds(self) -> int:
        """How far ahead of the wall's time it is."""
        return self._offset_seconds

    def set_offset(self, seconds: int) -> None:
        """Move the clock, here and for whoever reads the shared file."""
        self._offset_seconds = seconds
        if self._shared is not None:
            self._shared[0] = seconds

    def now(self) -> int:
        """Unix seconds by which objects are dated and fall due, whole as in Stripe's API."""
        return int(time.time()) + self._offset_seconds

    @staticmethod
    def wall() -> float:
        """Unix seconds of the real world: for signatures and retries, since receivers' clocks do not move with ours."""
        return time.time()


def _mapped(file: pathlib.Path) -> "memoryview[int]":
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        # Never replaced by another file: readers would keep the old one.
        opened.truncate(OFFSET_BYTES)
        return memoryview(mmap.mmap(opened.fileno(), OFFSET_BYTES)).cast("q")
