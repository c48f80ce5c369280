"""Many periods end in the same minute: Stripe's limits are kept, checkouts are answered, no usage misses its invoice.

The server and the sandbox are this process's, two workers are processes. The sandbox is made to refuse what Stripe
would refuse in test mode: more than 25 calls a second.
"""

import asyncio
import collections
import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from billing.v1 import usage_pb2
from billing_svc.platform import clock
from billing_svc.platform.database import tables
from billing_svc.platform.monitoring import metrics
from billing_svc.programs import worker as worker_program
from tests import ports
from tests.billing_svc.sandboxed import Sandbox, World, gateway_running, sandbox_running
from tests.billing_svc.usage_export import working

ALERTS = (Path(__file__).resolve().parents[3] / "deploy" / "prometheus" / "alerts.yml").read_text()
STRIPE_CALLS_PER_SECOND = 25
CALLS_PER_SECOND = 20
WORKER_KEY = "sk_test_worker"
# An account's calls: before its report two fetches, the event, and a fetch for each of its changed objects.
CALLS_FOR_AN_ACCOUNT = 8
WORKERS = 2
CHECKOUT_EVERY_SECONDS = 1.0
CHECKOUT_SECONDS_MAX = 2.0
# What was bought does not wait for the events of the periods: for the round of the inbox under way, and its own fetch.
PLAN_SECONDS_MAX = 10.0
# $20, and $0.50 for each of the 10 runs beyond the 200.
OWED = 2000 + 10 * 50


@dataclass
class Door:
    """Before the sandbox: notes when each worker calls, and refuses what is too much for Stripe."""

    app: ASGIApp
    by_workers: list[float] = field(default_factory=list)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    # As of the last call: calls that are admitted at once, as many as in a second.
    free: float = STRIPE_CALLS_PER_SECOND
    last_at: float = 0.0
    is_open: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.is_open or scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        now = time.monotonic()
        is_worker = WORKER_KEY in dict(scope["headers"]).get(b"authorization", b"").decode()
        if is_worker:
            self.by_workers.append(now)
        self.free = min(STRIPE_CALLS_PER_SECOND, self.free + (now - self.last_at) * STRIPE_CALLS_PER_SECOND)
        self.last_at = now
        if self.free < 1:
            self.refused["worker" if is_worker else "caller"] += 1
            error = {"error": {"type": "invalid_request_error", "code": "rate_limit", "message": "Too many requests."}}
            await JSONResponse(error, 429, {"Request-Id": "req_test"})(scope, receive, send)
            return
        self.free -= 1
        await self.app(scope, receive, send)


@pytest.fixture
def webhook_port() -> int:
    return ports.free_port()


@pytest.fixture
def clock_file(tmp_path: Path) -> Path:
    file = tmp_path / "clock"
    file.write_bytes(bytes(8))
    return file


@pytest.fixture
def service_clock(clock_file: Path) -> clock.Clock:
    return clock.SharedClock(clock_file)


@pytest.fixture
async def sandbox(tmp_path: Path, webhook_port: int, clock_file: Path) -> AsyncIterator[Sandbox]:
    webhook_url = f"http://127.0.0.1:{webhook_port}/stripe/webhook"
    async with sandbox_running(tmp_path / "stripe.sqlite", webhook_url, clock_file) as running:
        yield running


@contextlib.asynccontextmanager
async def workers_running(world: World, clock_file: Path) -> AsyncIterator[None]:
    chosen = world.billing.settings
    environment = {
        **os.environ,
        "PYTHONPATH": "src",
        "DATABASE_URL": chosen.database_url.get_secret_value(),
        "BILLING_DEV": "1",
        "BILLING_CLOCK_FILE": str(clock_file),
        "BILLING_STRIPE_CALLS_PER_SECOND": str(CALLS_PER_SECOND),
        "STRIPE_API_KEY": WORKER_KEY,
        "STRIPE_API_BASE": world.sandbox.url,
        "BILLING_CHECKOUT_SUCCESS_URL": chosen.success_url,
        "BILLING_CHECKOUT_CANCEL_URL": chosen.cancel_url,
    }
    async with asyncio.TaskGroup() as group:
        started = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "billing_svc", "worker"), env=environment, stderr=asyncio.subprocess.DEVNULL
            )
            for _ in range(WORKERS)
        ]
        try:
            yield
        finally:
            for one in started:
                one.terminate()
                group.create_task(one.wait())


def busiest(made: Sequence[float], seconds: float) -> int:
    """Return the most calls that any interval of this length has."""
    most, first = 0, 0
    for last, at in enumerate(made):
        while made[first] <= at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


async def count(world: World, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    async with world.billing.engine.connect() as conn:
        return int((await conn.execute(sa.select(sa.func.count()).select_from(table).where(*where))).scalar_one())


async def until(read: Callable[[], Awaitable[int]], wanted: int) -> None:
    while await read() != wanted:  # noqa: ASYNC110 - other processes do it
        await asyncio.sleep(0.2)


async def advance_to(world: World, at: float) -> None:
    """Move the clock, from one thing that is due at Stripe to the next."""
    while (left := int(at - world.billing.clock.now().timestamp())) > 0:
        await world.sandbox.control("POST", "clock/step", {"seconds": left})


async def subscribe(world: World, accounts: int) -> float:
    """Let accounts buy the plan, and use more than it includes just before their periods end; return the last end."""
    for n in range(accounts):
        await world.subscribe(f"org_{n}")
    while await count(world, tables.subscriptions, tables.subscriptions.c.status == "active") < accounts:
        await world.apply_all()
    await advance_to(world, (await world.subscription("org_0")).period_end.seconds - 3600)
    for n in range(accounts):
        await world.billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(account_id=f"org_{n}", event_id="runs", meter="runs", quantity=210)
        )
    return float((await world.subscription(f"org_{accounts - 1}")).period_end.seconds)


async def buy_all_the_time(world: World, stop: asyncio.Event) -> list[float]:
    """Ask for a checkout page every second, each for another account; return how long each took."""
    took: list[float] = []
    while not stop.is_set():
        began = time.monotonic()
        await world.checkout(f"buyer_{len(took)}")
        took.append(time.monotonic() - began)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, CHECKOUT_EVERY_SECONDS - took[-1]))
    return took


async def seconds_to_the_plan(world: World, account_id: str) -> float:
    """Buy a plan, and return after how long it is in force."""
    await world.subscribe(account_id)
    began = time.monotonic()
    while (await world.subscription(account_id)).plan != "pro":  # noqa: ASYNC110 - in the database
        await asyncio.sleep(0.1)
    return time.monotonic() - began


# BILLING_PERIOD_END_ACCOUNTS=1000 takes about ten minutes.
ACCOUNTS = int(os.environ.get("BILLING_PERIOD_END_ACCOUNTS", "100"))


@pytest.mark.parametrize("accounts", [20, pytest.param(ACCOUNTS, marks=pytest.mark.long)])
async def test_periods_that_end_together(world: World, webhook_port: int, clock_file: Path, accounts: int) -> None:
    door = Door(world.sandbox.faults.app, is_open=True)  # type: ignore[arg-type]  # it runs
    world.sandbox.faults.app = door
    async with gateway_running(world.billing.address, webhook_port):
        ends = await subscribe(world, accounts)
        # All periods end: Stripe makes the drafts, and sends an event for each change.
        await advance_to(world, ends + 30)
        door.is_open, stop = False, asyncio.Event()
        async with workers_running(world, clock_file), asyncio.timeout(60 + accounts * 2 * CALLS_FOR_AN_ACCOUNT / 20):
            began = time.monotonic()
            buying = asyncio.create_task(buy_all_the_time(world, stop))
            paying = asyncio.create_task(seconds_to_the_plan(world, "buyer_paid"))
            reports = tables.usage_reports
            await until(lambda: count(world, reports, reports.c.state != "sealed"), accounts)
            sent_seconds = time.monotonic() - began
            to_the_plan = await paying
            events = tables.stripe_events
            await until(lambda: count(world, events, events.c.state == "waiting"), 0)
            all_seconds = time.monotonic() - began
            stop.set()
            took = await buying
        door.is_open = True
        assert await count(world, reports, reports.c.state == "sent") == accounts
        await advance_to(world, ends + 2 * 3600)
    calls = len(door.by_workers)
    sys.stderr.write(
        json.dumps(
            {
                "accounts": accounts,
                "reports sent in": round(sent_seconds, 1),
                "all done in": round(all_seconds, 1),
                "workers' calls": calls,
                "busiest second": busiest(door.by_workers, 1),
                "per second": round(calls / (door.by_workers[-1] - door.by_workers[0]), 1),
                "refused": door.refused,
                "checkouts": len(took),
                "longest checkout": round(max(took), 2),
                "paid to plan": round(to_the_plan, 2),
            }
        )
        + "\n"
    )
    # Calls reach this process's event loop up to half a second late, and then together.
    assert busiest(door.by_workers, 1) <= STRIPE_CALLS_PER_SECOND
    assert busiest(door.by_workers, 4) <= 4 * CALLS_PER_SECOND + 10
    assert not door.refused
    assert max(took) < CHECKOUT_SECONDS_MAX
    assert to_the_plan < PLAN_SECONDS_MAX
    invoices = await world.sandbox.all("/v1/invoices")
    renewals = [one["total"] for one in invoices if one["billing_reason"] == "subscription_cycle"]
    assert renewals == [OWED] * accounts


async def test_usage_that_will_miss_its_invoice_is_alerted_before(world: World, webhook_port: int) -> None:
    """Stripe takes no meter events. The alert is due while the draft is open, and until then no report is late."""
    expression = r"expr: min\(billing_report_deadline_timestamp_seconds\) - time\(\) < (\d+)\n"
    (threshold,) = re.findall(expression, ALERTS)
    counted = metrics.Worker()

    async def left_seconds() -> float:
        await worker_program.read_backlogs(world.billing.transactions, world.billing.clock, counted)
        at = counted.registry.get_sample_value("billing_report_deadline_timestamp_seconds")
        assert at is not None
        return at - world.billing.clock.now().timestamp()

    async with gateway_running(world.billing.address, webhook_port):
        await subscribe(world, 1)
        assert await left_seconds() == math.inf
        usage = working.worker_of(world)
        await world.sandbox.fault("unavailable", path="/v1/billing/meter_events")
        alerted: float | None = None
        while not await count(world, tables.usage_reports, tables.usage_reports.c.state != "sealed"):
            left = await left_seconds()
            assert left > -2 * 3600
            if left < int(threshold) and alerted is None:
                alerted = left
            await advance_to(world, world.billing.clock.now().timestamp() + 300)
            await world.apply_all()
            await usage.work()
    assert alerted is not None
    assert alerted > 15 * 60
