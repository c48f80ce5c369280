"""Server, worker, gateway and Postgres are killed under load, with a failing Stripe; all records must agree."""

import asyncio
import contextlib
import random
import signal
import time
from pathlib import Path

import grpc
import httpx
import pytest
import sqlalchemy as sa

from billing.v1 import subscription_pb2, subscription_pb2_grpc, usage_pb2
from billing_svc.platform.database import embedded, tables
from billing_svc.programs.dev import programs
from tests.billing_svc import processes
from tests.faults import ledger, loads, runs, world

pytestmark = pytest.mark.long

ACCOUNTS = ("org_0", "org_1", "org_2")
METER_EVENT, METER_EVENTS = "nyqst_pro_runs", "/v1/billing/meter_events"
# How far the clocks advance until nothing is waiting: back-offs and leases end, and outcomes unknown for a day are
# found.
STEPS = [5] * 20 + [60] * 20 + [1800] * 60
VICTIMS = ("server", "server", "worker", "worker", "gateway", "postgres")


async def subscribe(one: world.World, channel: grpc.aio.Channel, account_id: str) -> str:
    """Buy a plan, and wait until it is in force, through the gateway, the inbox and the worker."""
    stub = subscription_pb2_grpc.SubscriptionServiceStub(channel)
    request = subscription_pb2.CreateCheckoutRequest(account_id=account_id, plan="pro", request_id="buy")
    page = await stub.CreateCheckout(request, metadata=processes.METADATA)
    paid = await one.sandbox.pay(page.url)
    asked = subscription_pb2.GetSubscriptionRequest(account_id=account_id)
    async with asyncio.timeout(world.ANSWER_SECONDS_MAX):
        told = await stub.GetSubscription(asked, metadata=processes.METADATA)
        while told.subscription.plan != "pro":
            await asyncio.sleep(world.POLL_SECONDS)
            told = await stub.GetSubscription(asked, metadata=processes.METADATA)
    return str(paid["subscription"])


async def change_minds(one: world.World, rng: random.Random, subscriptions: list[str], stop: asyncio.Event) -> None:
    """Let customers cancel and resume, at Stripe."""
    while not stop.is_set():
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        path = f"/v1/subscriptions/{rng.choice(subscriptions)}"
        ends = rng.choice(("true", "false"))
        # The sandbox fails at random; then the change happens in a later round.
        with contextlib.suppress(httpx.HTTPError, AssertionError):
            await one.sandbox.call("POST", path, cancel_at_period_end=ends)


async def harm(one: world.World, rng: random.Random, victim: str) -> None:
    for process in one.programs.values():
        await process.keep()
    if victim == "postgres":
        number = rng.choice((signal.SIGKILL, signal.SIGQUIT))
        await asyncio.to_thread(loads.end_and_start, one.postgres, number)
    else:
        await one.programs[victim].kill()
        await asyncio.sleep(rng.uniform(0, 0.3))
        await one.programs[victim].start()


async def come_to_rest(one: world.World) -> None:
    """Wait until the worker has nothing left to do, with the clocks advanced meanwhile."""
    # This test's connections died as well.
    await one.engine.dispose()
    for process in one.programs.values():
        await process.answering()
    for seconds in STEPS:
        if await one.is_quiet():
            return
        await one.advance(seconds)
        await asyncio.sleep(0.5)
    reports = await one.rows(tables.usage_reports, tables.usage_reports.c.closed_at.is_(None))
    events = await one.rows(tables.stripe_events, tables.stripe_events.c.state == "waiting")
    pytest.fail(f"not at rest: {reports}, {events}")


async def assert_stripe_agrees(one: world.World) -> int:
    """Assert that Stripe got all billable units, each once; returns how many units these are."""
    total = 0
    reports = await one.rows(tables.usage_reports)
    assert {row.state for row in reports} <= {"sent", "invoiced", "void"}, reports
    for account_id in ACCOUNTS:
        counters = tables.usage_counters.c
        billable = sum(row.billable for row in await one.rows(tables.usage_counters, counters.account_id == account_id))
        customers = {row.customer_id for row in reports if row.account_id == account_id}
        if not billable and not customers:
            continue  # on a slow machine the callers may not exceed what is included
        (customer,) = customers
        by_items = sum(
            row.to_units - row.from_units for row in reports if (row.account_id, row.state) == (account_id, "invoiced")
        )
        assert await one.on_the_meter(METER_EVENT, customer) + by_items == billable, account_id
        total += billable
    for row in await one.rows(tables.subscriptions):
        data = await one.sandbox.call("GET", f"/v1/subscriptions/{row.subscription_id}")
        assert (row.status, row.cancel_at_period_end) == (data["status"], data["cancel_at_period_end"])
    states = sa.select(tables.stripe_events.c.state).distinct()
    async with one.engine.connect() as conn:
        assert set((await conn.execute(states)).scalars()) <= {"applied", "ignored"}
    assert await one.drifts() == []
    return total


async def record(one: world.World, event_id: str) -> None:
    """Record a charged unit, without waiting for anything else."""
    request = usage_pb2.RecordUsageRequest(account_id=ACCOUNTS[0], event_id=event_id, meter="runs", quantity=300)
    async with grpc.aio.insecure_channel(programs.grpc_address(one.ports)) as channel:
        await processes.usage_stub(channel).RecordUsage(request, metadata=processes.METADATA, timeout=10)


async def kill_between_call_and_mark(one: world.World, number: int) -> None:
    """Kill the worker after Stripe has its call, and before the worker can have the answer."""
    held = {"kind": "lost_answer", "path": METER_EVENTS, "seconds": 5.0, "count": 1}
    await one.sandbox.control("DELETE", "requests")
    await one.sandbox.control("POST", "faults", held)
    await record(one, f"unmarked_{number}")
    async with asyncio.timeout(world.ANSWER_SECONDS_MAX):
        while not (await one.sandbox.control("GET", "faults"))[0].get("struck"):  # noqa: ASYNC110 - in its process
            await asyncio.sleep(world.POLL_SECONDS / 5)
    await one.programs["worker"].kill()
    await one.sandbox.control("DELETE", "faults")
    await one.programs["worker"].start()
    await come_to_rest(one)
    await assert_stripe_agrees(one)


async def be_away_for_a_day(one: world.World) -> None:
    """Advance by a day, so that Stripe has forgotten the identifiers before a call can be repeated."""
    await one.sandbox.control("POST", "faults", {"kind": "lost_answer", "path": METER_EVENTS, "seconds": 0.1})
    await record(one, "unheard")
    await asyncio.sleep(2)
    await one.sandbox.control("POST", "faults", {"kind": "away"})
    await record(one, "meanwhile")
    for _ in range(25):
        await one.advance(3600)
        await asyncio.sleep(0.3)
    await one.sandbox.control("DELETE", "faults")
    await come_to_rest(one)
    await assert_stripe_agrees(one)


async def test_whatever_dies_nothing_is_lost_and_nothing_counts_twice(
    own_postgres: embedded.EmbeddedPostgres, run: runs.Run, tmp_path: Path
) -> None:
    rng, deaths = run.rng(), dict.fromkeys(VICTIMS, 0)
    async with world.running(own_postgres, tmp_path, "nyqst") as one:
        target = programs.grpc_address(one.ports)
        async with grpc.aio.insecure_channel(target, (("grpc.max_reconnect_backoff_ms", 200),)) as channel:
            subscriptions = [await subscribe(one, channel, account_id) for account_id in ACCOUNTS]
        await ledger.give(one.engine, "strict", loads.STRICT_LIMIT, one.clock.now())
        await one.sandbox.control("POST", "faults", world.draw_faults(rng))
        load = loads.Load(run, loads.callers_of(run, ACCOUNTS))
        server = processes.ServerProcess(one.url, one.ports.grpc, tmp_path / "unused")
        async with loads.working(load, [server]):
            minds = asyncio.create_task(change_minds(one, run.rng("minds"), subscriptions, load.stop))
            until = time.monotonic() + run.seconds(7, 1.0)
            while time.monotonic() < until:
                await asyncio.sleep(rng.uniform(0.1, 1.5 if run.minutes is None else 5.0))
                victim = rng.choice(VICTIMS)
                await harm(one, rng, victim)
                deaths[victim] += 1
                load.count(**{f"deaths_of_{name}": number for name, number in deaths.items()})
            await one.sandbox.control("DELETE", "faults")
            load.stop.set()
            await minds
        await come_to_rest(one)
        load.count(units_at_Stripe=await assert_stripe_agrees(one))
        await loads.assert_kept(load, one.url)
        for n in range(run.times(1, 10)):
            await kill_between_call_and_mark(one, n)
        if run.minutes is not None:
            await be_away_for_a_day(one)
