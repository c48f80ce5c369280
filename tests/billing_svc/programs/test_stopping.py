"""One stop, step by step: what it does first, what it waits for, and what it does not wait for."""

import asyncio
import signal
import socket
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from billing.v1 import usage_pb2
from billing_svc.platform import clock
from billing_svc.platform.database import transactions as transactions_module
from billing_svc.platform.settings import Settings
from billing_svc.programs import server
from billing_svc.stripe import client
from tests.billing_svc import processes
from tests.billing_svc.service import tokens

pytestmark = pytest.mark.usefixtures("each_transport")

# Below what a connection that has reached its age is left for its calls.
SECONDS_MAX = 10.0
WAITING = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")


@pytest.mark.usefixtures("published_catalog")
async def test_a_stop_turns_unready_first_and_waits_for_none_who_watches(
    transactions: transactions_module.Transactions, settings: Settings
) -> None:
    short = settings.model_copy(update={"connection_age_seconds": 1})
    stripe = client.Stripe.from_settings(short)
    running = await server.start(short, transactions, stripe, clock.Clock(), tokens())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel, asyncio.timeout(SECONDS_MAX):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        with capture_logs() as lines:
            stopping = asyncio.create_task(running.stop())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await watching.read() is grpc.aio.EOF
            assert not stopping.done()
            await stopping
    assert "stop_cut_short" not in [line["event"] for line in lines]
    await stripe.close()


@pytest.mark.usefixtures("published_catalog")
async def test_a_call_that_is_under_way_at_sigterm_is_answered(
    database_url: str, tmp_path: Path, engine: AsyncEngine
) -> None:
    async with processes.servers(database_url, tmp_path, 1, processes.STOPS_SOON) as (one,), one.channel() as channel:
        async with engine.begin() as holder, asyncio.timeout(SECONDS_MAX):
            await holder.execute(sa.text("LOCK TABLE usage_counters IN ACCESS EXCLUSIVE MODE"))
            event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs")
            recording = asyncio.ensure_future(
                processes.usage_stub(channel).RecordUsage(event, metadata=processes.METADATA)
            )
            while not await holder.scalar(WAITING):
                pass  # each round is a query
            stopping = asyncio.create_task(one.kill(signal.SIGTERM))
            while _answers(one.port):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            # What would end the call at once has had its chance.
            await asyncio.wait({recording}, timeout=0.2)
        assert (await recording).used == 1
        await stopping
        assert '"stop_cut_short"' not in one.said()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
