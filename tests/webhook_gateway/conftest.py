"""The real gateway on a real port, in front of a real gRPC server whose answers a test scripts."""

import asyncio
import hashlib
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing.v1 import stripe_event_pb2, stripe_event_pb2_grpc
from webhook_gateway import app, body, forwarding, serving

SECRET = "whsec_0123456789abcdef"
OTHER_SECRET = "whsec_fedcba9876543210"
TOKEN = "token-of-the-gateway"


def event_body(event_id: str = "evt_1", **more: object) -> bytes:
    return json.dumps({"id": event_id, "object": "event", "type": "customer.updated", **more}).encode()


def sign(body: bytes, secret: str = SECRET, shift_seconds: int = 0) -> str:
    """Return a header for `body`, computed without the code under test."""
    timestamp = int(time.time()) + shift_seconds
    mac = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={mac.hexdigest()}"


@dataclass
class ScriptedService(stripe_event_pb2_grpc.StripeEventServiceServicer):
    """Stores events by id, unless a test tells it to refuse with `status` or to hang."""

    status: grpc.StatusCode = grpc.StatusCode.OK
    hangs: bool = False
    healthy: bool = True
    delay_seconds: float = 0.0
    calls: int = 0
    tokens: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)

    def reset(self) -> None:
        """Reset everything, so that the next test can use the same server."""
        self.__dict__.update(ScriptedService().__dict__)

    async def AcceptStripeEvent(  # noqa: N802 - the contract's name
        self,
        request: stripe_event_pb2.AcceptStripeEventRequest,
        context: grpc.aio.ServicerContext[
            stripe_event_pb2.AcceptStripeEventRequest, stripe_event_pb2.AcceptStripeEventResponse
        ],
    ) -> stripe_event_pb2.AcceptStripeEventResponse:
        self.calls += 1
        self.tokens.add(str(dict(context.invocation_metadata() or ()).get("authorization")))
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay_seconds)
        if self.status is not grpc.StatusCode.OK:
            await context.abort(self.status, "text of the service")
        duplicate = request.event_id in self.stored
        self.stored.setdefault(request.event_id, request.payload)
        return stripe_event_pb2.AcceptStripeEventResponse(stored=not duplicate, duplicate=duplicate)


class ScriptedHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The standard health service, with the status that the test sets."""

    def __init__(self, service: ScriptedService) -> None:
        self._service = service

    async def Check(  # noqa: N802 - the contract's name
        self, _request: object, _context: object
    ) -> object:
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._service.healthy else states.NOT_SERVING)


@asynccontextmanager
async def serve_grpc(service: ScriptedService, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server()
    stripe_event_pb2_grpc.add_StripeEventServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(ScriptedHealth(service), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def serve_gateway(
    grpc_port: int,
    *,
    body_seconds_max: float = body.READ_SECONDS_MAX,
    forward_seconds_max: float = forwarding.FORWARD_SECONDS_MAX,
    head_seconds_max: float = serving.HEAD_SECONDS_MAX,
) -> AsyncIterator[int]:
    """Run the gateway as `python -m webhook_gateway` builds it, with shorter time-outs if given; yields its port."""
    secrets = (SECRET.encode(), OTHER_SECRET.encode())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        async with forwarding.connect(f"127.0.0.1:{grpc_port}", TOKEN, forward_seconds_max) as forwarder:
            application = app.create_app(secrets, forwarder, body_seconds_max)
            server = serving.build_server(application, "127.0.0.1", 0, head_seconds_max)
            running = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:  # noqa: ASYNC110 - uvicorn offers a flag and no event
                await asyncio.sleep(0.01)
            yield listener.getsockname()[1]
            server.should_exit = True
            await running


@dataclass(frozen=True)
class Door:
    """The gateway as Stripe sees it."""

    port: int
    service: ScriptedService
    client: httpx.AsyncClient

    async def post(self, body: bytes, signature: str | None) -> httpx.Response:
        headers = {} if signature is None else {"stripe-signature": signature}
        return await self.client.post("/stripe/webhook", content=body, headers=headers)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a raw connection, for bytes that no HTTP client would send."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()  # the gateway may have closed; close() would wait for unsent bytes


@asynccontextmanager
async def open_door(service: ScriptedService, port: int) -> AsyncIterator[Door]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as client:
        yield Door(port, service, client)


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_door() -> AsyncIterator[Door]:
    service = ScriptedService()
    async with (
        serve_grpc(service) as grpc_port,
        serve_gateway(grpc_port) as port,
        open_door(service, port) as opened,
    ):
        yield opened


@pytest.fixture
def door(shared_door: Door) -> Door:
    """Return the module's gateway: stopping a gateway takes a fifth of a second, too long for each test."""
    shared_door.service.reset()
    return shared_door
