"""The gRPC client of the billing service, and the only module of the gateway that uses its stubs."""

import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing.v1 import stripe_event_pb2, stripe_event_pb2_grpc
from webhook_gateway import channel

FORWARD_SECONDS_MAX = 5.0  # storing takes milliseconds; with the body's 10 s it stays below Stripe's time-out of 20 s
HEALTH_SECONDS_MAX = 2.0  # a readiness probe is repeated anyway

_CHANNEL_OPTIONS = (
    # Short pauses, so that the first delivery after the service's return finds it. A few gateways cause little load.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # also the time limit of an attempt to connect
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # finds a service that moved to another address
    # No call lasts long enough for a ping, so the server cannot get too many. These two options switch on the kernel's
    # TCP_USER_TIMEOUT: if the peer vanished without closing the connection, the connection ends within the next call.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.enable_http_proxy", 0),  # the token and the events must not pass through a proxy
)


class Outcome(enum.Enum):
    """The result of forwarding an event."""

    STORED = enum.auto()
    DUPLICATE = enum.auto()  # the event was stored before
    REFUSED = enum.auto()  # the service will never accept these bytes
    MISCONFIGURED = enum.auto()  # the service refuses the gateway, because of its settings
    AWAY = enum.auto()  # unreachable, overloaded, too slow or failing: it is unknown whether the event was stored


_OUTCOMES = {
    grpc.StatusCode.INVALID_ARGUMENT: Outcome.REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: Outcome.MISCONFIGURED,
    grpc.StatusCode.PERMISSION_DENIED: Outcome.MISCONFIGURED,
    grpc.StatusCode.UNIMPLEMENTED: Outcome.MISCONFIGURED,
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """The service's answer; `code` is the gRPC status's name, for the log."""

    outcome: Outcome
    code: str


class Forwarder:
    """Calls the service; built by `connect`."""

    def __init__(self, channels: channel.Channels, token: str | None, seconds_max: float) -> None:
        self._channels = channels
        self._seconds_max = seconds_max
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()

    async def forward(self, body: bytes, event_id: str) -> Delivery:
        """Send a verified body to the service. Safe to repeat: the service stores an event id only once."""
        request = stripe_event_pb2.AcceptStripeEventRequest(payload=body, event_id=event_id)
        try:
            events = stripe_event_pb2_grpc.StripeEventServiceStub(self._channels.current())
            response = await events.AcceptStripeEvent(
                request, timeout=self._seconds_max, metadata=self._metadata, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            # Only the code is returned: the status's text comes from another process and must not be logged.
            return Delivery(_OUTCOMES.get(error.code(), Outcome.AWAY), error.code().name)
        return Delivery(Outcome.DUPLICATE if response.duplicate else Outcome.STORED, grpc.StatusCode.OK.name)

    async def is_service_serving(self) -> bool:
        """Return whether the service's health check answers SERVING."""
        try:
            answer = await health_pb2_grpc.HealthStub(self._channels.current()).Check(
                health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS_MAX, metadata=self._metadata
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def connect(
    target: str, token: str | None, seconds_max: float = FORWARD_SECONDS_MAX, files: channel.Files | None = None
) -> AsyncIterator[Forwarder]:
    """Open the channel. It connects at the first call, so the service may start later. Closing lets calls finish.

    Without `files` the channel is in plain text. Raises `channel.CertificateError` if the files cannot be used.
    """
    channels = channel.Channels(target, _CHANNEL_OPTIONS, files, seconds_max)
    try:
        yield Forwarder(channels, token, seconds_max)
    finally:
        await channels.close()
