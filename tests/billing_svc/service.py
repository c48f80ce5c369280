"""The real server in the test's process: its production interceptors, a database of its own, a clock that can move."""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
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
from billing_svc.platform import clock
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


@contextlib.asynccontextmanager
async def running(
    engine: AsyncEngine, transactions: transactions_module.Transactions, settings: Settings, now: clock.Clock
) -> AsyncIterator[Billing]:
    """Serve in the test's process. `engine` is for what a test looks up by itself."""
    stripe = client.Stripe.from_settings(settings)
    started = await server.start(settings, transactions, stripe, now, tokens())
    address = f"127.0.0.1:{started.port}"
    async with channel_to(address) as channel:
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
    await started.stop(grace_seconds=1)
    await stripe.close()


def channel_to(address: str) -> grpc.aio.Channel:
    """Return a channel whose calls carry the token of the caller with every group."""
    return grpc.aio.insecure_channel(address, interceptors=[_Token()])


def server_class() -> type[serving.Server]:
    """Return the transport that the tests run on, by BILLING_TRANSPORT as in the servers of other processes."""
    return choice.server_class("aio" if os.environ.get("BILLING_TRANSPORT") == "aio" else "fast")
