"""The real server in the test's process: its production interceptors, a database of its own, a clock that can move."""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.v1 import (
    admin_pb2_grpc,
    quota_pb2_grpc,
    stripe_event_pb2_grpc,
    subscription_pb2_grpc,
    usage_pb2_grpc,
)
from billing_svc.api import access
from billing_svc.api.transport import choice, serving
from billing_svc.catalog import loading, versions
from billing_svc.platform import clock
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import transactions as transactions_module
from billing_svc.platform.settings import Settings
from billing_svc.programs import server
from billing_svc.stripe import client

CATALOGS = Path(__file__).parents[2] / "catalogs"
TOKEN = "test-token"
LIMITED_TOKEN = "limited-token"


# The async stubs exist in the type hints alone, hence the quotes.
@dataclass(frozen=True, slots=True)
class Billing:
    """A running server, and stubs that call it as a caller with every group."""

    address: str
    quota: "quota_pb2_grpc.QuotaServiceAsyncStub"
    usage: "usage_pb2_grpc.UsageServiceAsyncStub"
    subscriptions: "subscription_pb2_grpc.SubscriptionServiceAsyncStub"
    events: "stripe_event_pb2_grpc.StripeEventServiceAsyncStub"
    admin: "admin_pb2_grpc.AdminServiceAsyncStub"
    clock: clock.Clock
    engine: AsyncEngine
    transactions: transactions_module.Transactions
    settings: Settings


class _Token(grpc.aio.UnaryUnaryClientInterceptor):
    """Sends the caller's token with each call."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:  # noqa: ANN401 - grpc's
        metadata = (*(details.metadata or ()), ("authorization", f"Bearer {TOKEN}"))
        return await continuation(details._replace(metadata=metadata), request)


def tokens() -> access.Tokens:
    """Return a caller with every group, for each group one that has it alone, and one that is limited to `org_1`.

    The second's token is `only-<group>`.
    """
    callers = [(access.Caller("test", frozenset(access.Group)), TOKEN)]
    callers += [(access.Caller(f"only-{one}", frozenset({one})), f"only-{one}") for one in access.Group]
    limited = access.Caller("limited", frozenset(access.Group) - {access.Group.WEBHOOK}, "org_1")
    callers += [(limited, LIMITED_TOKEN)]
    return access.Tokens((caller, [hashlib.sha256(token.encode()).hexdigest()]) for caller, token in callers)


def server_class() -> type[serving.Server]:
    """Return the transport that the tests run on: by BILLING_TRANSPORT, as servers in other processes."""
    return choice.server_class("aio" if os.environ.get("BILLING_TRANSPORT") == "aio" else "fast")


@pytest.fixture(params=[os.environ.get("BILLING_TRANSPORT")] if "BILLING_TRANSPORT" in os.environ else ["fast", "aio"])
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test once for each transport; where BILLING_TRANSPORT is set for the whole run, for that alone."""
    monkeypatch.setenv("BILLING_TRANSPORT", request.param)


@pytest.fixture
def catalog_name() -> str:
    """The catalog that the server starts with; a module may choose another."""
    return "nyqst"


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings.model_validate(
        {
            "DATABASE_URL": database_url,
            "BILLING_LISTEN": "127.0.0.1:0",
            "BILLING_REFLECTION": True,
            "STRIPE_API_KEY": "sk_test_tests",
            # Nothing listens there: what needs Stripe uses a sandbox of its own.
            "STRIPE_API_BASE": "http://127.0.0.1:9",
            "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
            "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
        }
    )


@pytest.fixture
async def published_catalog(transactions: transactions_module.Transactions, catalog_name: str) -> int:
    """The catalog's version, as published before the server starts."""
    catalog = loading.load_file(CATALOGS / f"{catalog_name}.yaml")
    now = clock.Clock().now()
    version, _ = await transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", now))
    return version


@pytest.fixture
def service_clock() -> clock.Clock:
    """The server's clock; the acceptance tests stop it."""
    return clock.Clock()


@pytest.fixture
async def billing(
    engine: AsyncEngine,
    transactions: transactions_module.Transactions,
    settings: Settings,
    published_catalog: int,  # noqa: ARG001 - it has to be there first
    service_clock: clock.Clock,
) -> AsyncIterator[Billing]:
    now = service_clock
    stripe = client.Stripe.from_settings(settings)
    running = await server.start(settings, transactions, stripe, now, tokens())
    address = f"127.0.0.1:{running.port}"
    async with grpc.aio.insecure_channel(address, interceptors=[_Token()]) as channel:
        yield Billing(
            address,
            quota_pb2_grpc.QuotaServiceStub(channel),
            usage_pb2_grpc.UsageServiceStub(channel),
            subscription_pb2_grpc.SubscriptionServiceStub(channel),
            stripe_event_pb2_grpc.StripeEventServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(channel),
            now,
            engine,
            transactions,
            settings,
        )
    await running.stop(grace_seconds=1)
    await stripe.close()


@pytest.fixture
async def replicas(
    database_url: str, settings: Settings, published_catalog: int
) -> AsyncIterator[list["usage_pb2_grpc.UsageServiceAsyncStub"]]:
    """Stubs of six servers on one database that share nothing else, so that each call has its own transaction."""
    assert published_catalog
    stripe = client.Stripe.from_settings(settings)
    async with contextlib.AsyncExitStack() as stack:
        stubs = []
        for _ in range(6):
            engine = engines.create_engine(database_url, pool_size=3)
            stack.push_async_callback(engine.dispose)
            running = await server.start(
                settings, transactions_module.Transactions(engine), stripe, clock.Clock(), tokens()
            )
            stack.push_async_callback(running.stop, 1)
            address = f"127.0.0.1:{running.port}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, interceptors=[_Token()]))
            stubs.append(usage_pb2_grpc.UsageServiceStub(channel))
        yield stubs
    await stripe.close()
