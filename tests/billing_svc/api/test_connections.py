"""Connections that reach their age, servers that are replaced in turn: no call fails of it."""

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from billing.v1 import usage_pb2
from billing_svc.api import interceptors
from billing_svc.platform.settings import Settings
from billing_svc.programs import server
from tests.billing_svc import processes

NAMES = [f"caller-{n:02}" for n in range(12)]
SECONDS_MAX = 60


@dataclass(slots=True)
class Load:
    """Callers, each on connections of its own as gRPC makes them, that record one event after the other."""

    account: str = field(default_factory=lambda: f"org_{uuid.uuid4().hex}")
    stopping: bool = False
    recorded: int = 0
    failed: list[grpc.aio.AioRpcError] = field(default_factory=list)

    async def call_on(self, channel: grpc.aio.Channel, name: str) -> None:
        stub = processes.usage_stub(channel)
        metadata = (*processes.METADATA, (interceptors.REQUEST_ID_KEY, name))
        while not self.stopping:
            event = usage_pb2.RecordUsageRequest(account_id=self.account, event_id=uuid.uuid4().hex, meter="runs")
            try:
                await stub.RecordUsage(event, timeout=20, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                self.failed.append(error)
            else:
                self.recorded += 1

    async def more(self, count: int = 150) -> None:
        """Wait until so many more were recorded."""
        enough = self.recorded + count
        async with asyncio.timeout(SECONDS_MAX):
            while self.recorded < enough:  # noqa: ASYNC110 - many callers add to it
                await asyncio.sleep(0.02)

    async def reach(self, server: processes.ServerProcess) -> None:
        """Wait until every caller was answered by a server since it was started, as its log tells."""
        left = set(NAMES)
        async with asyncio.timeout(SECONDS_MAX):
            while left:
                await asyncio.sleep(0.02)
                said = server.said()
                left = {name for name in left if f'"{name}"' not in said}


@contextlib.asynccontextmanager
async def loaded(addresses: Sequence[str]) -> AsyncIterator[Load]:
    load = Load()
    options = (
        ("grpc.use_local_subchannel_pool", 1),
        # Over all addresses, as clients of several servers are told to.
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ("grpc.initial_reconnect_backoff_ms", 50),
        # How long an attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 200),
    )
    async with contextlib.AsyncExitStack() as channels, asyncio.TaskGroup() as callers:
        for name in NAMES:
            target = f"ipv4:{','.join(addresses)}"
            channel = await channels.enter_async_context(grpc.aio.insecure_channel(target, options))
            callers.create_task(load.call_on(channel, name))
        yield load
        load.stopping = True


async def counted(address: str, account: str) -> int:
    request = usage_pb2.GetUsageRequest(account_id=account, meters=["runs"])
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await processes.usage_stub(channel).GetUsage(request, timeout=20, metadata=processes.METADATA)
    return answer.meters[0].used


@pytest.mark.usefixtures("published_catalog")
async def test_connections_that_reach_their_age_fail_no_call(database_url: str, tmp_path: Path) -> None:
    async with (
        processes.servers(database_url, tmp_path, 1, processes.STOPS_SOON) as (one,),
        loaded([one.address]) as load,
    ):
        # Each connection is replaced some five times meanwhile.
        for _ in range(5):
            await asyncio.sleep(1)
            await load.more(1)
        load.stopping = True
        assert load.failed == []
        assert await counted(one.address, load.account) >= load.recorded


@pytest.mark.usefixtures("published_catalog")
async def test_servers_restarted_in_turn_under_load_fail_no_call(database_url: str, tmp_path: Path) -> None:
    async with processes.servers(database_url, tmp_path, 2, processes.STOPS_SOON) as (first, second):
        async with loaded([first.address, second.address]) as load:
            await load.more()
            for one in (first, second):
                await one.kill(signal.SIGTERM)
                await load.more()
                await one.start()
                # Each comes back after a pause of its own; one that is not back when the other server goes has nobody.
                await load.reach(one)
        assert load.failed == []
        assert await counted(first.address, load.account) == load.recorded


def test_a_stop_waits_for_the_age_and_for_the_last_call(settings: Settings) -> None:
    options = dict(server._options(settings, shared_port=False))  # noqa: SLF001 - what gRPC is told
    age_ms, grace_ms = options["grpc.max_connection_age_ms"], options["grpc.max_connection_age_grace_ms"]
    assert age_ms == 15_000
    assert server.drain_seconds(settings) * 1_000 >= age_ms * 1.1 + grace_ms
    assert grace_ms > interceptors.SERVER_DEADLINE_SECONDS * 1_000
