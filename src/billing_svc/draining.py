"""A stop that fails no call.

gRPC's core ends with CANCELLED whatever has reached the process when a stop begins but was not yet handed to Python
(grpc/grpc#41785). Under load there is always something: each answer makes its caller send the next call at once. So a
stop first holds all answers back, takes up what still arrives, and tells the callers to go elsewhere; only then are
they answered. A caller that waits for its answers loses nothing; of one that does not, only what crosses that message.
"""

import asyncio
from typing import Any

from billing_svc import interceptors
from billing_svc.rpc import serving

# Calls that have reached the process are taken up one by one, far faster than this.
_QUIET_SECONDS = 0.02
# Callers that never pause are stopped in mid-stream.
_HELD_SECONDS_MAX = 0.5
# The message to go elsewhere is written by a thread of gRPC's, at once.
_MESSAGE_SECONDS = 0.02


class Answers:
    """All answers on their way out."""

    def __init__(self) -> None:
        self._arrived = 0
        self._released = asyncio.Event()
        self._released.set()

    def layer(self, _method: str, inner: interceptors.Handler) -> interceptors.Handler:
        """Let each answer and each error through, unless they are held."""

        async def run(request: Any, context: interceptors.Context) -> Any:  # noqa: ANN401 - any message
            self._arrived += 1
            try:
                return await inner(request, context)
            finally:
                if not self._released.is_set():
                    await self._released.wait()

        return run

    async def stop(self, server: serving.Server, grace_seconds: float) -> None:
        """Stop a server once what it was sent is under way, and let that finish."""
        self._released.clear()
        try:
            async with asyncio.timeout(_HELD_SECONDS_MAX):
                await self._quiet()
        except TimeoutError:
            pass
        stopping = asyncio.create_task(server.stop(grace_seconds))
        try:
            await asyncio.sleep(_MESSAGE_SECONDS)
        finally:
            self._released.set()
        await stopping

    async def _quiet(self) -> None:
        arrived = -1
        while arrived != self._arrived:
            arrived = self._arrived
            await asyncio.sleep(_QUIET_SECONDS)
