"""The server, its gateway and its inbox, with a Stripe that returns what a test chooses."""

import hashlib
import hmac
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import uvicorn

from billing_svc.catalog import versions
from billing_svc.inbox import apply_events
from billing_svc.platform import clock
from billing_svc.platform.database import tables
from billing_svc.platform.settings import Settings
from billing_svc.stripe import client
from tests import ports
from tests.billing_svc import sandboxed
from tests.billing_svc.recorded.shapes import CUSTOMER, METERED_PRICE, PRICE, START
from tests.billing_svc.recorded.stand_in import StandIn
from tests.billing_svc.service import Billing


@pytest.fixture
async def stand_in() -> AsyncIterator[tuple[StandIn, str]]:
    app = StandIn()

    def build(_port: int) -> uvicorn.Server:
        return uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none"))

    async with sandboxed.listening(build) as url:
        yield app, url


@pytest.fixture
def stripe_url(stand_in: tuple[StandIn, str]) -> str:
    return stand_in[1]


@pytest.fixture
def service_clock() -> clock.Clock:
    """A day after the beginning of the objects' period."""
    return clock.Clock(datetime.fromtimestamp(START, UTC) + timedelta(days=1) - datetime.now(UTC))


@dataclass(frozen=True)
class Door:
    """The gateway as the way in for events, and the service behind it."""

    billing: Billing
    stripe: StandIn
    inbox: apply_events.Inbox
    gateway: httpx.AsyncClient

    async def post(self, body: bytes) -> int:
        """Send a signed body to the gateway, as Stripe does; returns the status of its answer."""
        at = int(time.time())
        digest = hmac.new(sandboxed.SECRET.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
        headers = {"Stripe-Signature": f"t={at},v1={digest}", "Content-Type": "application/json"}
        return (await self.gateway.post("/stripe/webhook", content=body, headers=headers)).status_code

    async def deliver(self, *events: Mapping[str, Any]) -> None:
        for event in events:
            assert await self.post(json.dumps(event).encode()) == 200, event["type"]

    async def apply_all(self) -> None:
        while await self.inbox.apply_due():
            pass

    async def rows(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
        async with self.billing.engine.connect() as conn:
            return list(await conn.execute(sa.select(table).where(*where)))

    async def states(self) -> dict[str, tuple[str, str | None]]:
        return {row.event_id: (row.state, row.note) for row in await self.rows(tables.stripe_events)}


@pytest.fixture
async def door(billing: Billing, settings: Settings, stand_in: tuple[StandIn, str]) -> AsyncIterator[Door]:
    """With a customer of ours (org_1) and the prices of `nyqst`'s pro, as a checkout and `catalog apply` store them."""
    now = billing.clock.now()
    price = {
        "product_id": "prod_pro",
        "catalog_version": 1,
        "plan": "pro",
        "pay_as_you_go": False,
        "is_current": True,
        "created_at": now,
    }
    async with billing.engine.begin() as conn:
        await conn.execute(sa.insert(tables.accounts).values(account_id="org_1", created_at=now, customer_id=CUSTOMER))
        await conn.execute(
            sa.insert(tables.stripe_customers).values(customer_id=CUSTOMER, account_id="org_1", linked_at=now)
        )
        for price_id, name, meter in ((PRICE, "monthly", ""), (METERED_PRICE, "", "runs")):
            await conn.execute(
                sa.insert(tables.stripe_prices).values(
                    price_id=price_id, lookup_key=price_id, price=name, meter=meter, **price
                )
            )
    stripe = client.Stripe.from_settings(settings)
    inbox = apply_events.Inbox(billing.transactions, versions.CatalogCache(), stripe, billing.clock)
    port = ports.free_port()
    async with (
        sandboxed.gateway_running(billing.address, port),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ) as gateway,
    ):
        yield Door(billing, stand_in[0], inbox, gateway)
    await stripe.close()
