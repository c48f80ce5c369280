import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from billing.v1 import usage_pb2_grpc
from billing_svc.platform import clock
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import transactions as transactions_module
from billing_svc.platform.settings import Settings
from billing_svc.programs import server
from billing_svc.stripe import client
from tests.billing_svc import service


@pytest.fixture(params=[os.environ.get("BILLING_TRANSPORT")] if "BILLING_TRANSPORT" in os.environ else ["fast", "aio"])
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test once for each transport; if BILLING_TRANSPORT is set for the whole run, for that transport alone."""
    monkeypatch.setenv("BILLING_TRANSPORT", request.param)


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
                settings, transactions_module.Transactions(engine), stripe, clock.Clock(), service.tokens()
            )
            stack.push_async_callback(running.stop, 1)
            channel = await stack.enter_async_context(service.channel_to(f"127.0.0.1:{running.port}"))
            stubs.append(usage_pb2_grpc.UsageServiceStub(channel))
        yield stubs
    await stripe.close()
