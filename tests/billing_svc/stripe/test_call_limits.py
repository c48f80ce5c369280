"""All workers together make no more calls of Stripe than BILLING_STRIPE_CALLS_PER_SECOND says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import prometheus_client
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing_svc.platform import errors
from billing_svc.platform import settings as settings_module
from billing_svc.platform.database import engine as engines
from billing_svc.platform.database import tables, transactions
from billing_svc.platform.monitoring import metrics
from billing_svc.stripe import call_limits, client, requests_made
from tests.billing_svc.sandboxed import Sandbox

T = TypeVar("T")

SECONDS_MAX = 30
GET = "GET /v1/invoices/:id"


class Counted(transactions.Transactions):
    """Counts its runs."""

    runs = 0

    async def run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        self.runs += 1
        return await super().run(work)


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Counted]:
    """Another process's way to the database."""
    pool = engines.create_engine(database_url)
    yield Counted(pool)
    await pool.dispose()


async def calls(limits: call_limits.CallLimits, number: int, made: list[float], endpoint: str = GET) -> None:
    """Make calls one after another, and write down when."""
    for _ in range(number):
        await limits.wait(endpoint)
        made.append(asyncio.get_running_loop().time())


async def together(*callers: Awaitable[object]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        await asyncio.gather(*callers)


def busiest(made: Sequence[float], seconds: float = 1.0) -> int:
    """Return the most calls that any interval of this length has."""
    return max(sum(start <= at < start + seconds for at in made) for start in made)


async def test_two_processes_share_the_limit(transactions: transactions.Transactions, other: Counted) -> None:
    made: list[float] = []
    one, two = call_limits.CallLimits(transactions, 20), call_limits.CallLimits(other, 20)
    await together(*(calls(limits, 5, made) for limits in (one, two) for _ in range(6)))
    assert len(made) == 60
    # A call on each edge of the interval, and one that the event loop held back in each process.
    assert busiest(made) <= 20 + 3
    # The limit is used: 60 calls take three seconds, and a busy machine some more.
    assert max(made) - min(made) < 5
    # A statement reserves calls for all callers that wait.
    assert other.runs <= 15


async def test_time_without_calls_allows_no_burst(
    transactions: transactions.Transactions, other: Counted, engine: AsyncEngine
) -> None:
    made: list[float] = []
    one, two = call_limits.CallLimits(transactions, 20), call_limits.CallLimits(other, 20)
    await together(calls(one, 1, made))
    async with engine.connect() as conn:
        await conn.execute(sa.text("SELECT pg_sleep(2)"))
    await together(*(calls(limits, 1, made) for limits in (one, two) for _ in range(10)))
    assert busiest(made[1:], 0.4) <= 8 + 3


async def test_callers_that_gave_up_leave_no_burst(transactions: transactions.Transactions) -> None:
    """Also the calls that a process had reserved: as after a crash, they are lost, and no more than half a second."""
    made: list[float] = []
    limits = call_limits.CallLimits(transactions, 20)
    waiting = [asyncio.create_task(calls(limits, 1, [])) for _ in range(10)]
    await asyncio.sleep(0)
    await together(calls(limits, 1, made))
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    successor = call_limits.CallLimits(transactions, 20)
    began = asyncio.get_running_loop().time()
    await together(calls(successor, 5, made))
    assert made[-5] - began < call_limits.BLOCK_SECONDS_MAX + 0.3
    await together(*(calls(limits, 1, made) for _ in range(5)))
    assert busiest(made, 0.2) <= 4 + 2


async def test_a_slow_database_delays_calls_and_allows_no_burst(
    transactions: transactions.Transactions, engine: AsyncEngine
) -> None:
    made: list[float] = []
    limits = call_limits.CallLimits(transactions, 20)
    await together(calls(limits, 1, made))
    async with engine.begin() as conn:
        await conn.execute(sa.select(tables.stripe_call_limits).with_for_update())
        waiting = asyncio.gather(*(calls(limits, 1, made) for _ in range(10)))
        await conn.execute(sa.text("SELECT pg_sleep(0.5)"))
        assert len(made) == 1
    await together(waiting)
    assert busiest(made, 0.2) <= 4 + 2


async def test_a_database_that_is_away_admits_no_call() -> None:
    pool = engines.create_engine("postgresql://nobody@127.0.0.1:9/none")
    with pytest.raises(errors.Unavailable, match="database"):
        await call_limits.CallLimits(transactions.Transactions(pool), 20).wait(GET)
    await pool.dispose()


async def test_a_clock_of_postgres_that_went_back_does_not_stop_the_calls(
    transactions: transactions.Transactions, engine: AsyncEngine
) -> None:
    limits = call_limits.CallLimits(transactions, 20)
    await limits.wait(GET)
    async with engine.begin() as conn:
        ahead = sa.func.clock_timestamp() + timedelta(hours=1)
        await conn.execute(sa.update(tables.stripe_call_limits).values(free_at=ahead))
    waiting = asyncio.create_task(limits.wait(GET))
    ahead_seconds = sa.func.extract("epoch", tables.stripe_call_limits.c.free_at - sa.func.clock_timestamp())
    async with asyncio.timeout(SECONDS_MAX), engine.connect() as conn:
        while (left := float((await conn.execute(sa.select(ahead_seconds))).scalar_one())) > 3_000:
            await conn.commit()
    waiting.cancel()
    assert left < call_limits.AHEAD_SECONDS_MAX + 1


async def test_an_endpoint_has_its_own_limit_but_meter_events_have_none(
    transactions: transactions.Transactions,
) -> None:
    invoices: list[float] = []
    events: list[float] = []
    limits = call_limits.CallLimits(transactions, 60)
    await together(
        *(calls(limits, 6, invoices) for _ in range(5)),
        *(calls(limits, 6, events, "POST /v1/billing/meter_events") for _ in range(5)),
    )
    assert busiest(invoices) <= 20 + 2
    assert max(events) - min(events) < max(invoices) - min(invoices)


async def test_a_caller_that_waits_too_long_is_told_so(
    transactions: transactions.Transactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_limits, "WAIT_SECONDS_MAX", 0.05)
    limits = call_limits.CallLimits(transactions, 1)
    with pytest.raises(errors.StripeUnavailable, match="too many calls"):
        await together(*(limits.wait(GET) for _ in range(3)))


async def test_every_request_of_a_worker_s_client_is_paced_and_counted(
    settings: settings_module.Settings, transactions: transactions.Transactions, sandbox: Sandbox
) -> None:
    """Pages, and the SDK's repeats too."""
    customer = await sandbox.call("POST", "/v1/customers")
    registry = prometheus_client.CollectorRegistry()
    paced = settings.model_copy(update={"stripe_calls_per_second": 20})
    stripe = client.Stripe.paced(paced, transactions, metrics.StripeRequests(registry))
    made: list[float] = []

    async def arrive(_method: str, _path: str) -> int | None:
        made.append(asyncio.get_running_loop().time())
        return None

    sandbox.faults.before = arrive
    await sandbox.fault("unavailable", path="/v1/customers/*", count=5)
    await together(*(_fetch(stripe, customer["id"]) for _ in range(20)))
    with pytest.raises(client.NotAtStripe):
        await stripe.invoice("in_none")
    await stripe.close()
    assert len(made) == 20 + 5 + 1
    assert busiest(made) <= 20 + 2

    def counted(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"billing_stripe_{name}_total", {"method": "GET", **labels})

    assert counted("requests", endpoint="/v1/customers/:id") == 25
    assert counted("refusals", endpoint="/v1/customers/:id", status="503", code="api_error") == 5
    assert counted("refusals", endpoint="/v1/invoices/:id", status="404", code="resource_missing") == 1


async def _fetch(stripe: client.Stripe, customer_id: str) -> None:
    assert (await stripe.customer(customer_id))["id"] == customer_id


def test_an_endpoint_s_name_has_no_id() -> None:
    assert requests_made.endpoint_of("https://api.stripe.com/v1/invoices/in_1/lines?limit=100") == (
        "/v1/invoices/:id/lines"
    )
    assert requests_made.endpoint_of("https://api.stripe.com/v1/customers/org_secret") == "/v1/customers/:id"
