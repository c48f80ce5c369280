"""Postgres stopped under load, and back again: what callers, probes and the books see of it."""

import asyncio
import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing.v1 import quota_pb2, usage_pb2
from billing_svc.catalog import loading, versions
from billing_svc.platform import clock
from billing_svc.platform.database import embedded, migrating, transactions
from billing_svc.platform.database import engine as engines
from tests import ports
from tests.billing_svc import books, processes, refusals
from tests.billing_svc.service import CATALOGS

CALLERS = 16
# What a caller gives the service. The service has to say that Postgres is away within it.
DEADLINE_SECONDS = 10.0
# How soon all has to go on once Postgres is back; most of it is Postgres' own start.
RECOVERY_SECONDS_MAX = 10.0
AWAY_SECONDS = 4.0
SECONDS_MAX = 60


@pytest.fixture(name="own_postgres")
def own_postgres_server() -> Iterator[embedded.EmbeddedPostgres]:
    """A server that may be stopped."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-tests-") as name:
        Path(name).chmod(0o711)
        with embedded.EmbeddedPostgres(Path(name) / "postgres", ports.free_port(), durable=False) as server:
            yield server


@pytest.fixture(name="url")
async def published_url(own_postgres: embedded.EmbeddedPostgres) -> str:
    url = own_postgres.start()
    await asyncio.to_thread(migrating.upgrade, url)
    engine = engines.create_engine(url)
    catalog = loading.load_file(CATALOGS / "nyqst.yaml")
    now = clock.Clock().now()
    await transactions.Transactions(engine).run(lambda conn: versions.publish(conn, catalog, "operator:test", now))
    await engine.dispose()
    return url


@dataclass(slots=True)
class Load:
    """Callers that check and record, and repeat under the same id what they are told to repeat."""

    channel: grpc.aio.Channel
    account: str = field(default_factory=lambda: f"org_{uuid.uuid4().hex}")
    stopping: bool = False
    recorded: int = 0
    refused: list[refusals.Refusal] = field(default_factory=list)
    slowest_seconds: float = 0.0

    async def call_on(self) -> None:
        usage, quota = processes.usage_stub(self.channel), processes.quota_stub(self.channel)
        while not self.stopping:
            event = usage_pb2.RecordUsageRequest(account_id=self.account, event_id=uuid.uuid4().hex, meter="runs")
            check = quota_pb2.CheckQuotaRequest(account_id=self.account, meter="runs")
            await self._until_answered(
                lambda check=check: quota.CheckQuota(check, timeout=DEADLINE_SECONDS, metadata=processes.METADATA)
            )
            await self._until_answered(
                lambda event=event: usage.RecordUsage(event, timeout=DEADLINE_SECONDS, metadata=processes.METADATA)
            )
            self.recorded += 1

    async def _until_answered(self, call) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - a call of a stub
        while True:
            began = time.monotonic()
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                refusal = refusals.of(error)
                self.refused.append(refusal)
                await asyncio.sleep(min(refusal.retry_after_seconds or 0.1, 0.1))
            else:
                return
            finally:
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)

    async def more(self, count: int = 100) -> None:
        """Wait until so many more were recorded."""
        enough = self.recorded + count
        async with asyncio.timeout(SECONDS_MAX):
            while self.recorded < enough:  # noqa: ASYNC110 - many callers add to it
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def loaded(channel: grpc.aio.Channel) -> AsyncIterator[Load]:
    load = Load(channel)
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(load.call_on())
        yield load
        load.stopping = True


async def health_is(channel: grpc.aio.Channel, status: int) -> None:
    """Wait until the health check answers so, by its own stream."""
    async with asyncio.timeout(SECONDS_MAX):
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
            if answer.status == status:
                return


async def ready(port: int) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code


async def test_postgres_stopped_under_load_is_said_at_once_and_all_goes_on_when_it_is_back(
    own_postgres: embedded.EmbeddedPostgres, url: str, tmp_path: Path
) -> None:
    port = ports.free_port()
    more = {"BILLING_MONITORING_LISTEN": f"127.0.0.1:{port}"}
    states = health_pb2.HealthCheckResponse
    async with (
        processes.servers(url, tmp_path, 1, more) as (one,),
        one.channel() as channel,
        loaded(channel) as load,
    ):
        assert one.process is not None
        pid = one.process.pid
        await load.more()
        assert load.refused == []
        await asyncio.to_thread(own_postgres.stop)
        await health_is(channel, states.NOT_SERVING)
        assert await ready(port) == 503
        await asyncio.sleep(AWAY_SECONDS)
        assert load.refused
        await asyncio.to_thread(own_postgres.start)
        back = time.monotonic()
        await load.more()
        assert time.monotonic() - back < RECOVERY_SECONDS_MAX
        await health_is(channel, states.SERVING)
        assert await ready(port) == 200
        load.stopping = True
        assert one.process.pid == pid
        os.kill(pid, 0)
    assert {(one.code, one.reason) for one in load.refused} == {
        (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    }
    assert all(one.retry_after_seconds for one in load.refused)
    assert load.slowest_seconds < DEADLINE_SECONDS
    engine = engines.create_engine(url)
    assert await books.used(engine, load.account) == load.recorded
    await books.assert_balanced(engine)
    await engine.dispose()
