"""The parts of `dev`. Each is restarted when it dies, and given up when it dies too often."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Never, TypeVar

from billing_svc.platform.database import embedded
from billing_svc.programs.commands import common
from billing_svc.programs.dev.terminal import Terminal
from billing_svc.programs.supervision import children, deaths

T = TypeVar("T")

# Importing everything takes a second or two on an idle machine.
_ANSWER_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.05
# How often to check that Postgres is alive; a check is a system call.
_WATCH_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Program:
    """A part's command, and the check that it answers."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    answers: Callable[[children.Child], Awaitable[bool]]
    announcement: str = ""


class DevPart:
    """A program that is kept running."""

    def __init__(self, program: Program, terminal: Terminal) -> None:
        self.answering = asyncio.Event()
        self._program = program
        self._terminal = terminal
        self._child: children.Child | None = None
        self._deaths = deaths.Deaths(program.name)

    @property
    def name(self) -> str:
        """The part's name, with which its lines begin."""
        return self._program.name

    async def keep(self) -> Never:
        """Run the program and restart it whenever it ends. Raises Refusal if it dies too often or does not answer."""
        while True:
            self._child = await children.Child.start(
                self._program.command,
                self._program.environment,
                lambda line: self._terminal.part(self.name, line),
                self._program.announcement,
            )
            code = await self._await_end(self._child)
            how = children.ending(code)
            pause_seconds = self._deaths.add(how, self._child.tail)
            self._terminal.say(f"{self.name} {how}; starting it again in {pause_seconds:.1f} s", "yellow")
            # Kills the program's own children too, which would keep its port in use.
            self._child.kill()
            await asyncio.sleep(pause_seconds)

    async def stop(self) -> None:
        """Stop the program; to be called after `keep` has ended."""
        if self._child is not None and not await self._child.stop():
            self._terminal.say(f"{self.name} did not stop within {children.GRACE_SECONDS_MAX:.0f} s; killed", "yellow")

    def kill(self) -> None:
        """Kill the program."""
        if self._child is not None:
            self._child.kill()

    async def _await_end(self, child: children.Child) -> int:
        """Print a line when the program answers, wait for its end, and return its exit code."""
        ended = asyncio.create_task(child.wait())
        try:
            started = time.monotonic()
            while not ended.done() and not await self._program.answers(child):
                if time.monotonic() > started + _ANSWER_SECONDS_MAX:
                    raise common.Refusal(f"{self.name} does not answer after {_ANSWER_SECONDS_MAX:.0f} s")
                await asyncio.wait({ended}, timeout=_POLL_SECONDS)
            if not ended.done():
                self._terminal.answers(self.name, child.pid, time.monotonic() - started)
                self.answering.set()
            return await ended
        finally:
            ended.cancel()


class Postgres:
    """The embedded Postgres, also a child of this process."""

    name = "postgres"

    def __init__(self, folder: Path, port: int, terminal: Terminal) -> None:
        self._server = embedded.EmbeddedPostgres(folder, port)
        self._log_file = folder / "postgres.log"
        self._terminal = terminal
        self._deaths = deaths.Deaths(self.name)
        self._at_work: asyncio.Task[object] | None = None

    async def start(self) -> str:
        """Start the server and return the service's URL. Raises Refusal."""
        try:
            return await self._start()
        except embedded.EmbeddedPostgresError as error:
            raise common.Refusal(str(error)) from None

    async def keep(self) -> Never:
        """Restart the server on the same port whenever it dies. Raises Refusal if it dies too often."""
        while True:
            while self._is_alive():  # noqa: ASYNC110 - there is no event for the server's end
                await asyncio.sleep(_WATCH_SECONDS)
            pause_seconds = self._deaths.add("ended", self._tail())
            self._terminal.say(f"{self.name} ended; starting it again in {pause_seconds:.1f} s", "yellow")
            await asyncio.sleep(pause_seconds)
            await self._in_thread(self._server.stop)
            try:
                await self._start()
            except embedded.EmbeddedPostgresError as error:
                self._terminal.say(f"{self.name}: {error}", "yellow")

    async def stop(self) -> None:
        """Stop the server; to be called when neither `start` nor `keep` runs."""
        if self._at_work is not None:
            # A cancelled start continues in its thread.
            await asyncio.wait({self._at_work})
            self._at_work.exception()
        await asyncio.to_thread(self._server.stop)

    def kill(self) -> None:
        """Do nothing: the server stops fast, and a kill would make the next start slower."""

    async def _start(self) -> str:
        started = time.monotonic()
        url = await self._in_thread(self._server.start)
        self._terminal.answers(self.name, self._server.pid, time.monotonic() - started)
        return url

    async def _in_thread(self, work: Callable[[], T]) -> T:
        task = asyncio.create_task(asyncio.to_thread(work))
        self._at_work = task
        return await asyncio.shield(task)

    def _is_alive(self) -> bool:
        pid = self._server.pid
        if pid is None:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _tail(self) -> list[str]:
        return self._log_file.read_text(errors="replace").splitlines()[-children.TAIL_LINES :]
