"""A gRPC server that listens on when gRPC's own loop gives up.

grpc.aio decodes each call's path in the loop that takes calls up: a path that is not UTF-8, from whomever, ends that
loop and all listening with it, while the process lives on. Calls under way still finish. So the loop is watched, and a
new server takes the place of one that was ended so.
"""

import asyncio
from collections.abc import Callable

import grpc
import structlog

_log = structlog.get_logger("listening")

# How long callers may find nobody; looking costs nothing.
LOOK_SECONDS = 0.1

# Builds a server, not yet started, on its own port or, where that was any, on the given one; returns the port.
Build = Callable[[int], tuple[grpc.aio.Server, int]]


class Listener:
    """A server, or the one in its place."""

    def __init__(self, build: Build, grace_seconds: float) -> None:
        """`grace_seconds` is what calls under way are given when their server has ended."""
        self._build = build
        self._grace_seconds = grace_seconds
        self.server, self.port = build(0)
        self._watching: asyncio.Task[None] | None = None
        # asyncio itself keeps only weak references to tasks.
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take calls up from now on."""
        await self.server.start()
        self._watching = asyncio.create_task(self._watch())

    async def rest(self) -> grpc.aio.Server:
        """Watch no longer, and return the server, which is to be stopped now."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        for ending in self._ending:
            ending.cancel()
        return self.server

    async def _watch(self) -> None:
        while True:
            try:
                if not await self.server.wait_for_termination(LOOK_SECONDS):
                    return
            except Exception as error:  # noqa: BLE001 - whatever ended gRPC's loop
                _log.error("listening_anew", error=type(error).__name__)
                self._end(self.server)
                await self._begin_anew()

    def _end(self, server: grpc.aio.Server) -> None:
        ending = asyncio.create_task(server.stop(self._grace_seconds))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _begin_anew(self) -> None:
        while True:
            try:
                self.server, self.port = self._build(self.port)
            except RuntimeError:  # the old one's port is closed by a thread of gRPC's, soon
                await asyncio.sleep(LOOK_SECONDS)
            else:
                await self.server.start()
                return
