"""Many callers reserve units of the same counter: from four client processes, through two servers, in either order."""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.v1 import quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc
from billing_svc.metering.reservations import hold_units
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import tables, transactions
from billing_svc.programs import server
from billing_svc.stripe import client
from tests.billing_svc import books, processes
from tests.billing_svc.service import TOKEN, Billing, tokens
from tests.faults import ledger, loads, runs

LIMIT = 50
CLIENTS, CALLS_EACH = 4, 50
ROUND_SECONDS_MAX = 60.0
METADATA = (("authorization", f"Bearer {TOKEN}"),)

# A client process: for each account on its input, it makes all reservations at once and prints how many it got.
_CLIENT = """
import asyncio, sys
import grpc
from billing.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

async def main(address, name, calls):
    metadata = (("authorization", "Bearer dev-token"),)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(address, options) as channel:
        await channel.channel_ready()
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        print("ready", flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while account := (await reader.readline()).decode().strip():
            requests = [
                quota_pb2.CheckQuotaRequest(account_id=account, meter="runs", reserve=True, request_id=f"{name}_{n}")
                for n in range(calls)
            ]
            answers = await asyncio.gather(*(stub.CheckQuota(one, metadata=metadata, timeout=30) for one in requests))
            allowed = [one.reservation_id for one in answers if one.decision == decision_pb2.DECISION_ALLOWED]
            print(*allowed, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@contextlib.asynccontextmanager
async def clients(addresses: list[str]) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    started: list[asyncio.subprocess.Process] = []
    try:
        for n in range(CLIENTS):
            started.append(  # noqa: PERF401 - those that were started are ended, whatever becomes of the rest
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", _CLIENT, addresses[n % len(addresses)], f"client_{n}", str(CALLS_EACH)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=os.environ | {"PYTHONPATH": str(processes.SRC)},
                )
            )
        assert [await said(one) for one in started] == ["ready"] * CLIENTS
        yield started
    finally:
        for one in started:
            if one.returncode is None:
                one.kill()
            await one.wait()


async def said(one: asyncio.subprocess.Process) -> str:
    assert one.stdout is not None
    return (await asyncio.wait_for(one.stdout.readline(), ROUND_SECONDS_MAX)).decode().strip()


async def test_four_client_processes_on_two_servers_hold_exactly_what_there_is(
    database_url: str, engine: AsyncEngine, run: runs.Run, tmp_path: Path
) -> None:
    await loads.prepare(database_url)
    rounds = run.times(2, 100)
    async with (
        processes.servers(database_url, tmp_path, 2) as started,
        clients([one.address for one in started]) as callers,
    ):
        for n in range(rounds):
            account_id = f"contended_{n}"
            async with engine.connect() as conn:
                now = await conn.scalar(sa.select(sa.func.now()))
            assert now is not None
            await ledger.give(engine, account_id, LIMIT, now)
            for one in callers:
                assert one.stdin is not None
                one.stdin.write(f"{account_id}\n".encode())
            held = [reservation_id for line in [await said(one) for one in callers] for reservation_id in line.split()]
            assert len(held) == len(set(held)) == LIMIT
            run.count(rounds=n + 1)
    counters = sa.select(tables.usage_counters.c.reserved)
    async with engine.connect() as conn:
        assert (await conn.execute(counters)).scalars().all() == [LIMIT] * rounds
    await ledger.assert_consistent(engine)


@pytest.fixture
async def second(billing: Billing, database_url: str) -> AsyncIterator[grpc.aio.Channel]:
    """Yield a connection to a second server on the same database, with the same clock."""
    engine = engines.create_engine(database_url)
    database, stripe = transactions.Transactions(engine), client.Stripe.from_settings(billing.settings)
    running = await server.start(billing.settings, database, stripe, billing.clock, tokens())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield channel
    await running.stop(1)
    await stripe.close()
    await engine.dispose()


async def test_events_that_wait_for_the_same_counter_are_all_counted(
    billing: Billing, second: grpc.aio.Channel
) -> None:
    """No event adds to a total that it read before it had the counter's lock."""
    stubs = (billing.usage, usage_pb2_grpc.UsageServiceStub(second))
    await billing.usage.RecordUsage(usage_pb2.RecordUsageRequest(account_id="org_1", event_id="first", meter="runs"))
    async with billing.engine.begin() as holder:
        await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
        going = [
            asyncio.ensure_future(_record(stub, usage_pb2.RecordUsageRequest(event_id=f"run_{n}", quantity=n + 2)))
            for n, stub in enumerate(stubs)
        ]
        await books.wait_for_waiters(billing.engine, len(going))
    await asyncio.gather(*going)
    assert await books.used(billing.engine, "org_1") == 1 + 2 + 3
    await ledger.assert_consistent(billing.engine)


async def _record(
    stub: "usage_pb2_grpc.UsageServiceAsyncStub", request: usage_pb2.RecordUsageRequest
) -> usage_pb2.RecordUsageResponse:
    request.account_id, request.meter = "org_1", "runs"
    return await stub.RecordUsage(request, metadata=METADATA)


ENDINGS = ("settle", "release", "expire")


@pytest.mark.parametrize("order", list(itertools.product(ENDINGS, repeat=2)), ids="-".join)
async def test_of_two_endings_of_a_hold_the_first_wins_and_its_units_come_back_once(
    billing: Billing, second: grpc.aio.Channel, order: tuple[str, str]
) -> None:
    request = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs", quantity=2, reserve=True, request_id="job")
    held = await billing.quota.CheckQuota(request)
    another = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs", reserve=True, request_id="another_job")
    another.reservation_ttl.FromTimedelta(timedelta(hours=1))
    await billing.quota.CheckQuota(another)
    acts: dict[str, Callable[[int], Awaitable[object]]] = {
        "settle": lambda n: _settle(
            (billing.usage, usage_pb2_grpc.UsageServiceStub(second))[n], held.reservation_id, n
        ),
        "release": lambda n: _release((billing.quota, quota_pb2_grpc.QuotaServiceStub(second))[n], held.reservation_id),
        "expire": lambda _n: _expire(billing),
    }
    # Both wait for the counter's lock, in this order, each through another server.
    async with billing.engine.begin() as holder:
        await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
        going: list[asyncio.Future[object]] = []
        for n, name in enumerate(order):
            going.append(asyncio.ensure_future(acts[name](n)))
            await books.wait_for_waiters(billing.engine, n + 1)
    await asyncio.gather(*going)
    async with billing.engine.connect() as conn:
        (state,) = (
            await conn.execute(sa.select(tables.reservations.c.state).where(tables.reservations.c.request_id == "job"))
        ).scalars()
        reserved = await conn.scalar(sa.select(tables.usage_counters.c.reserved))
    assert state == {"settle": "settled", "release": "released", "expire": "expired"}[order[0]]
    assert reserved == 1
    assert await books.used(billing.engine, "org_1") == 2 * order.count("settle")
    await ledger.assert_consistent(billing.engine)


async def _settle(stub: "usage_pb2_grpc.UsageServiceAsyncStub", reservation_id: str, number: int) -> object:
    request = usage_pb2.RecordUsageRequest(event_id=f"run_{number}", quantity=2, reservation_id=reservation_id)
    return await _record(stub, request)


async def _release(stub: "quota_pb2_grpc.QuotaServiceAsyncStub", reservation_id: str) -> object:
    request = quota_pb2.ReleaseReservationRequest(account_id="org_1", reservation_id=reservation_id)
    return await stub.ReleaseReservation(request, metadata=METADATA)


async def _expire(billing: Billing) -> object:
    """Run the sweep as if the first reservation had expired."""
    later = billing.clock.now() + timedelta(minutes=16)
    return await billing.transactions.run(lambda conn: hold_units.sweep(conn, later))
