import asyncio
import contextlib
import dataclasses
import json
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import stripe
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stripe_sandbox import app, settings

SECRET = "whsec_test"


@contextlib.asynccontextmanager
async def serving(build: Callable[[int], Starlette]) -> AsyncIterator[str]:
    """Serve an app on a free port, and yield its address."""
    # With the protocol named, asyncio switches Nagle's delay off; otherwise each request takes 40 ms longer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(build(port), log_level="warning", access_log=False, ws="none", lifespan="on")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            assert not task.done(), "the server ended instead of starting"
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await task


@dataclasses.dataclass(slots=True)
class Receiver:
    """The receiver of webhooks: verifies each delivery with the SDK, and gives the answer that the test chooses."""

    url: str = ""
    status: int = 200
    attempts: int = 0
    accepted: list[Any] = dataclasses.field(default_factory=list)
    signatures: list[str] = dataclasses.field(default_factory=list)
    arrived: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        signature = request.headers["stripe-signature"]
        if json.loads(body)["object"] == "v2.core.event":
            stripe.StripeClient("sk_test_receiver").parse_event_notification(body, signature, SECRET)
        else:
            stripe.Webhook.construct_event(body, signature, SECRET)
        self.attempts += 1
        self.signatures.append(signature)
        if self.status == 200:
            self.accepted.append(json.loads(body))
        self.arrived.set()
        return Response(status_code=self.status)

    def types(self) -> list[str]:
        return sorted(event["type"] for event in self.accepted)

    async def until(self, reached: Callable[[], bool], seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not reached():
                self.arrived.clear()
                await self.arrived.wait()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiving = Receiver()
    routes = [Route("/stripe/webhook", receiving.receive, methods=["POST"])]
    async with serving(lambda _: Starlette(routes=routes)) as url:
        receiving.url = f"{url}/stripe/webhook"
        yield receiving


@dataclasses.dataclass(frozen=True, slots=True)
class Sandbox:
    """A running sandbox, the SDK's client of it, and a plain HTTP client."""

    url: str
    stripe: stripe.StripeClient
    http: httpx.AsyncClient


@contextlib.asynccontextmanager
async def running(file: pathlib.Path, webhook_url: str | None = None) -> AsyncIterator[Sandbox]:
    def build(port: int) -> Starlette:
        return app.create_app(settings.Settings(port, file, webhook_url, SECRET))

    async with serving(build) as url:
        transport = stripe.HTTPXClient(
            timeout=5, verify_ssl_certs=False
        )  # no TLS here, and loading the authorities takes time
        client = stripe.StripeClient(
            "sk_test_sandbox",
            base_addresses={"api": url, "meter_events": url},
            http_client=transport,
            max_network_retries=0,
        )
        async with httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": "Bearer sk_test_plain"},
            trust_env=False,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # empty: no TLS is used here
        ) as plain:
            yield Sandbox(url, client, plain)
        await transport.close_async()  # type: ignore[no-untyped-call] # the SDK's


@pytest.fixture
def state_file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "stripe.sqlite"


@pytest.fixture
async def sandbox(state_file: pathlib.Path) -> AsyncIterator[Sandbox]:
    async with running(state_file) as made:
        yield made


def activates(event: stripe.Event) -> bool:
    """Say whether an event reports that the first payment made a subscription active."""
    previous = event.to_dict()["data"].get("previous_attributes") or {}
    return event.type == "customer.subscription.updated" and previous.get("status") == "incomplete"


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """What the tests sell: a monthly base price and a metered price."""

    product: str
    base: str
    metered: str
    meter: str


async def make_offer(sandbox: Sandbox) -> Offer:
    api = sandbox.stripe.v1
    product = await api.products.create_async({"id": "nyqst_pro", "name": "Pro <plan>"})
    meter = await api.billing.meters.create_async(
        {"display_name": "Runs", "event_name": "nyqst_pro_runs", "default_aggregation": {"formula": "sum"}}
    )
    base = await api.prices.create_async(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 2000,
            "recurring": {"interval": "month"},
            "lookup_key": "nyqst_pro_monthly",
        }
    )
    metered = await api.prices.create_async(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 50,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
        }
    )
    return Offer(product.id, base.id, metered.id, meter.id)


@pytest.fixture
async def offer(sandbox: Sandbox) -> Offer:
    return await make_offer(sandbox)
