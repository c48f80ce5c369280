"""Whether calls should come here, as gRPC's health protocol tells it.

Anybody may watch, so nobody who watches may hold anything up: grpcio-health-checking's own servicer keeps a lock while
it writes, and one watcher that takes no answer stops every change, and with it the end of the process.
"""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing_svc.api import interceptors

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # ships without type hints
    """Tells the same of every service, and of the server as a whole (the empty name)."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._services = frozenset(("", *services))
        self._status = _NOT_SERVING
        self._is_final = False
        # Those who watch wait for it; with each change there is a new one.
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001 - the one thing that it says
        """Tell it to who asks and who watches, unless the server drains."""
        if not self._is_final:
            self._status = _SERVING if serving else _NOT_SERVING
            self._changed.set()
            self._changed = asyncio.Event()

    def drain(self) -> None:
        """Say that calls should go elsewhere, from now on."""
        self.set_serving(False)
        self._is_final = True  # whoever watches runs after this

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: interceptors.Context
    ) -> health_pb2.HealthCheckResponse:
        """Return what is so now."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: interceptors.Context) -> None:
        """Write what is so now and after each change; who is slow misses what was not so for long.

        Ends when the server drains: it waits for its connections to go, and a stream would hold its own.
        """
        written = None
        while True:
            changed = self._changed
            status = self._status if request.service in self._services else _UNKNOWN
            if status != written:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                written = status
            if self._is_final and changed is self._changed:
                return
            await changed.wait()
