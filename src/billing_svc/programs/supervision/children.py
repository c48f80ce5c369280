"""A child process with its own process group; its output is read by lines, and stopping it has a time limit."""

import asyncio
import collections
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from billing_svc.programs.supervision import launcher

# How long a part may take to stop after SIGTERM. Shorter than in production, because `dev` has no callers to lose.
GRACE_SECONDS_MAX = 5.0
# How many last lines of output are shown if a part dies too often.
TAIL_LINES = 20
# A longer line is split.
_LINE_BYTES_MAX = 64 * 1024
_CHUNK_BYTES = 64 * 1024
# How long to wait for the end of the output after the process's end: its own children may keep the output open.
_OUTPUT_SECONDS_MAX = 1.0
# How often to check whether the process has ended.
_POLL_SECONDS = 0.05

_LAUNCHER = str(Path(launcher.__file__).resolve())


class Child:
    """A program that runs until it exits or is stopped."""

    def __init__(self, process: asyncio.subprocess.Process, show: Callable[[str], None], announcement: str) -> None:
        """Use `start`."""
        self._process = process
        self._show = show
        self._announcement = announcement
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._reading = asyncio.create_task(self._read())
        self.has_announced = False

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        show: Callable[[str], None],
        announcement: str = "",
    ) -> Self:
        """Start a program; `show` gets each line of its output.

        `has_announced` becomes true at the first log line whose event is `announcement`. Must be called in the main
        thread: Linux ends a child when the *thread* that started it ends.
        """
        process = await asyncio.create_subprocess_exec(
            *tied(*command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            # Ctrl-C in the terminal must not reach the child; the parent stops its children in order.
            start_new_session=True,
        )
        return cls(process, show, announcement)

    @property
    def pid(self) -> int:
        """The process id, which the program keeps from the launcher."""
        return self._process.pid

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of the output."""
        return tuple(self._tail)

    async def wait(self) -> int:
        """Wait for the process's end and its output; return the exit code, negative if a signal ended the process."""
        code = await self._exit()
        await asyncio.wait({self._reading}, timeout=_OUTPUT_SECONDS_MAX)
        return code

    async def stop(self) -> bool:
        """Stop the process by SIGTERM, then by SIGKILL. Returns whether SIGTERM was enough."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        ended = asyncio.create_task(self._exit())
        await asyncio.wait({ended}, timeout=GRACE_SECONDS_MAX)
        obeyed = ended.done()
        # Kills the process's own children too, which may still run.
        self.kill()
        await ended
        await asyncio.wait({self._reading}, timeout=_OUTPUT_SECONDS_MAX)
        self._reading.cancel()
        return obeyed

    def kill(self) -> None:
        """Kill the process and its own children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _exit(self) -> int:
        # Polled, because the process's wait() also waits until the output is closed by all who have it open.
        while (code := self._process.returncode) is None:  # noqa: ASYNC110 - see above
            await asyncio.sleep(_POLL_SECONDS)
        return code

    async def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was requested
        pending = b""
        while chunk := await self._process.stdout.read(_CHUNK_BYTES):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._hand_on(line)
            if len(pending) > _LINE_BYTES_MAX:
                self._hand_on(pending)
                pending = b""
        if pending:
            self._hand_on(pending)

    def _hand_on(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip()
        self._tail.append(line)
        if not self.has_announced and self._announcement and f'"{self._announcement}"' in line:
            self.has_announced = _event_of(line) == self._announcement
        self._show(line)


def _event_of(line: str) -> object:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry.get("event") if isinstance(entry, dict) else None


def tied(*command: str) -> Sequence[str]:
    """Return a command that replaces itself by `command`; on Linux it is killed when this process ends."""
    # -I and -S: no environment, no current folder, no site-packages; the launcher needs only the standard library.
    return sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), *command


def ending(code: int) -> str:
    """Return words for a process's exit code: how it ended."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
