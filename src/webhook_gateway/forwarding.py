"""The gRPC client of the billing service, and the only place here that knows its stubs."""

import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing.v1 import stripe_event_pb2, stripe_event_pb2_grpc
from webhook_gateway import channel

FORWARD_SECONDS_MAX = 5.0  # storing takes milliseconds; with reading the body it stays within Stripe's patience
HEALTH_SECONDS_MAX = 2.0  # whoever asks for readiness asks again

_CHANNEL_OPTIONS = (
    # Short steps, so that the first delivery after the service's return finds it: one gateway is no herd.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a service that moved is found as quickly
    # No call lasts long enough for a ping, so no server can take offence at too many; what these two switch on is the
    # kernel's TCP_USER_TIMEOUT: a connection whose peer vanished without a word dies within the call that finds out.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.enable_http_proxy", 0),  # the token and the events go to the service and through nobody's proxy
)


class Outcome(enum.Enum):
    """What became of a forwarded event."""

    STORED = enum.auto()
    DUPLICATE = enum.auto()  # it was stored already
    REFUSED = enum.auto()  # the service will never take these bytes
    MISCONFIGURED = enum.auto()  # the service does not take them from us, as we are set up
    AWAY = enum.auto()  # unreachable, shedding, too slow or failing: may or may not be stored, so it must come again


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
    """Calls of the service; built by `connect`."""

    def __init__(self, channels: channel.Channels, token: str | None, seconds_max: float) -> None:
        self._channels = channels
        self._seconds_max = seconds_max
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()

    async def forward(self, body: bytes, event_id: str) -> Delivery:
        """Hand a verified body to the service. Safe to repeat: the service stores an event id once."""
        request = stripe_event_pb2.AcceptStripeEventRequest(payload=body, event_id=event_id)
        try:
            events = stripe_event_pb2_grpc.StripeEventServiceStub(self._channels.current())
            response = await events.AcceptStripeEvent(
                request, timeout=self._seconds_max, metadata=self._metadata, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            # The status's text stays here: what another process wrote into it is not ours to log.
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
    """Open the channel, lazily: the service may come later. Closing it lets calls under way finish.

    Without `files` it is in plain text. Raises `channel.CertificateError` when they are of no use.
    """
    channels = channel.Channels(target, _CHANNEL_OPTIONS, files, seconds_max)
    try:
        yield Forwarder(channels, token, seconds_max)
    finally:
        await channels.close()
