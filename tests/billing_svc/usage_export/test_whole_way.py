"""From a recorded run to Stripe's invoice, with the sandbox as Stripe and a moving clock."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.v1 import usage_pb2
from billing_svc.platform import clock
from billing_svc.platform.database import tables
from tests.billing_svc.sandboxed import World
from tests.billing_svc.usage_export.working import Worker, drifts, record, reports, subscribed, worker_of

MONTH = timedelta(days=31)


async def invoice_totals(world: World) -> list[int]:
    """Return the totals of all of the customer's invoices, oldest first."""
    found = await world.sandbox.all("/v1/invoices")
    return [invoice["total"] for invoice in reversed(found)]


async def test_a_month_of_260_runs_costs_what_the_plan_says(world: World, worker: Worker) -> None:
    await subscribed(world)
    for n in range(26):
        await record(world, "runs", 10, f"run_{n}")
        await worker.advance(timedelta(days=1), timedelta(days=1))
    await worker.over_the_period_end()
    assert await invoice_totals(world) == [2000, 2000 + 60 * 50]
    assert {state for _, _, state in await reports(world)} == {"sent"}
    assert await drifts(world) == []


async def test_usage_is_on_its_invoice_though_it_comes_in_the_last_minutes(world: World, worker: Worker) -> None:
    """Also usage that happened in the period and was recorded up to 30 minutes after its end."""
    await subscribed(world)
    await record(world, "runs", 200, "included")
    ends = (await world.subscription()).period_end.ToDatetime(tzinfo=_utc())
    await worker.advance(ends - world.billing.clock.now() - timedelta(seconds=5), MONTH)
    await record(world, "runs", 3, "last")
    await worker.advance(timedelta(seconds=65))
    late = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="late", meter="runs", quantity=4)
    late.occurred_at.FromDatetime(ends - timedelta(minutes=1))
    await worker.advance(timedelta(minutes=25))
    await world.billing.usage.RecordUsage(late)
    await worker.advance(timedelta(hours=2))
    assert await reports(world) == [("runs", 3, "sent"), ("runs", 4, "sent")]
    assert await invoice_totals(world) == [2000, 2000 + 7 * 50]
    assert await drifts(world) == []


async def test_a_day_without_stripe_across_a_period_s_end_charges_each_unit_once(world: World, worker: Worker) -> None:
    """Recording does not need Stripe. Reports under way and later usage are charged once: by the meter or items."""
    await subscribed(world)
    await record(world, "runs", 210, "before")
    ends = (await world.subscription()).period_end.ToDatetime(tzinfo=_utc())
    await worker.advance(ends - world.billing.clock.now() - timedelta(hours=13), MONTH)
    await worker.advance(timedelta(hours=1))
    assert await reports(world) == [("runs", 10, "sent")]

    async def away(_method: str, _path: str) -> int | None:
        return 503

    world.sandbox.faults.before = away
    await record(world, "runs", 5, "during")
    for n in range(12):
        await worker.work()
        world.billing.clock.advance(timedelta(hours=1))
        await record(world, "runs", 1, f"during_{n}")
    await worker.work()
    for _ in range(12):
        await worker.work()
        world.billing.clock.advance(timedelta(hours=1))
    # The sandbox, which got no call for a day, has created its invoice meanwhile.
    world.sandbox.faults.clear()
    await world.sandbox.control("POST", "clock/advance", {"seconds": 24 * 3600, "pause_seconds": 0})
    await world.deliver_new()
    await worker.advance(timedelta(days=2), timedelta(hours=1))
    totals = await invoice_totals(world)
    assert totals == [2000, 2000 + 10 * 50]
    states = await reports(world)
    assert sum(units for _, units, state in states if state == "invoiced") == 5 + 11
    assert {state for _, _, state in states} <= {"sent", "invoiced"}
    await worker.advance(MONTH, MONTH)
    assert (await invoice_totals(world))[2] == 2000 + 16 * 50
    assert await drifts(world) == []


def _utc() -> Any:  # noqa: ANN401 - a zone
    return clock.Clock().now().tzinfo


async def test_what_comes_after_the_subscription_has_ended_gets_an_invoice_of_its_own(
    world: World, worker: Worker
) -> None:
    """The subscription is ended at Stripe itself, with units that were not sent yet; they are not lost."""
    subscription_id = await subscribed(world)
    await record(world, "runs", 210, "sent")
    await worker.catch_up()
    await record(world, "runs", 7, "unsent")
    await world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}", invoice_now="true", prorate="false")
    await world.deliver_new()
    await worker.advance(timedelta(hours=3))
    assert await reports(world) == [("runs", 10, "sent"), ("runs", 7, "invoiced")]
    assert await invoice_totals(world) == [2000, 10 * 50, 7 * 50]
    assert [one["status"] for one in await world.sandbox.all("/v1/invoices")] == ["paid"] * 3
    assert await drifts(world) == []


async def test_a_customer_that_was_deleted_is_noticed_when_its_late_usage_is_refused(
    world: World, worker: Worker
) -> None:
    """The event of the deletion never arrives; that of the subscription's end does."""
    await subscribed(world)
    await record(world, "runs", 207, "unsent")
    (account,) = await world.rows(tables.accounts)
    await world.sandbox.call("DELETE", f"/v1/customers/{account.customer_id}")
    await world.deliver(*await world.events("customer.subscription.deleted"))
    await world.apply_all()
    await worker.sealer.seal("org_1")
    await worker.sender.send("org_1", at_once=True)
    assert await reports(world) == [("runs", 7, "failed")]
    assert [row.customer_id for row in await world.rows(tables.accounts)] == [None]
    (audit,) = await world.rows(tables.audit_log, tables.audit_log.c.action == "customer.unlinked")
    assert (audit.changes, audit.actor) == ({"customer": account.customer_id}, "service")


async def test_a_correction_of_a_period_that_is_invoiced_is_a_credit(world: World, worker: Worker) -> None:
    await subscribed(world)
    await record(world, "runs", 210, "first")
    await worker.over_the_period_end()
    request = usage_pb2.CorrectUsageRequest(account_id="org_1", event_id="first", correction_id="void", quantity=4)
    await world.billing.usage.CorrectUsage(request)
    await worker.catch_up()
    assert await reports(world) == [("runs", 10, "sent"), ("runs", -4, "invoiced")]
    await worker.advance(MONTH, timedelta(days=1))
    assert (await invoice_totals(world))[:3] == [2000, 2000 + 10 * 50, 2000 - 4 * 50]
    assert await drifts(world) == []


@pytest.mark.parametrize("killed", [1, 2, 3, 4], ids=lambda n: f"at call {n}")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_worker_killed_while_it_charges_late_usage_charges_it_once(
    world: World,
    worker: Worker,
    killed: int,
    after: bool,  # noqa: FBT001 - a parameter
) -> None:
    subscription_id = await subscribed(world)
    await record(world, "runs", 207, "unsent")
    await world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}")
    await world.deliver_new()
    await worker.sealer.seal("org_1")
    sending = asyncio.create_task(worker.sender.send("org_1", at_once=True))
    world.sandbox.faults.crash(killed, after=after, task=lambda: sending)
    await asyncio.wait({sending})
    world.sandbox.faults.clear()
    await worker_of(world).advance(timedelta(hours=3))
    assert await reports(world) == [("runs", 7, "invoiced")]
    assert await invoice_totals(world) == [2000, 7 * 50]
    assert await drifts(world) == []


class TestAgentplatform:
    """Prices for 1,000 units, and gauges."""

    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_the_documented_month_costs_186_50(self, world: World, worker: Worker) -> None:
        await subscribed(world, plan="standard")
        await record(world, "llm_tokens", 1_500_000, "tokens")
        await record(world, "agent_executions", 5_500, "executions")
        await record(world, "api_calls", 120_000, "calls")
        for meter, level in (("storage_gb", 105), ("user_seats", 27)):
            request = usage_pb2.RecordUsageRequest(account_id="org_1", event_id=meter, meter=meter, level=level)
            await world.billing.usage.RecordUsage(request)
        await worker.catch_up()
        await worker.over_the_period_end()
        totals = await invoice_totals(world)
        # The first month's usage is on the invoice with the second month's price.
        assert totals == [9900, 9900 + 500 + 5000 + 2000 + 250 + 1000]
        assert Decimal(totals[1]) / 100 == Decimal("186.50")
        assert await drifts(world) == []
        # Nothing is recorded in the second month; the stored level is charged all the same.
        await worker.over_the_period_end()
        assert (await invoice_totals(world))[2] == 9900 + 250 + 1000
        assert await drifts(world) == []
