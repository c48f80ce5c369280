"""gRPC's health protocol: whether this server should get calls.

Watching needs no token, so a watcher must not be able to block the server. The servicer of grpcio-health-checking holds
a lock while it writes: a single watcher that reads no answers would block every change, and the process's end.
"""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing_svc.api import interceptors

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # ships without type hints
    """Reports the same status for every service, and for the whole server (the empty name)."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._services = frozenset(("", *services))
        self._status = _NOT_SERVING
        self._is_final = False
        # Watchers wait for this event; each change sets it and creates a new event.
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001 - its only argument
        """Set the status for checks and watchers; ignored after `drain`."""
        if not self._is_final:
            self._status = _SERVING if serving else _NOT_SERVING
            self._changed.set()
            self._changed = asyncio.Event()

    def drain(self) -> None:
        """Set the status to NOT_SERVING for good."""
        self.set_serving(False)
        self._is_final = True  # the watchers' tasks run after this line

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: interceptors.Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the current status."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: interceptors.Context) -> None:
        """Write the current status, and each change; a slow watcher can miss a status that lasted for a short time.

        The stream ends when the server drains: a stop waits until all connections are closed, and an open stream would
        keep its connection open.
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
