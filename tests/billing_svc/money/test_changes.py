"""Changes and cancellations in the middle of a period, with unreported overage: every unit is charged once."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing.v1 import subscription_pb2, usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money import ledger as ledgers
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW

pytestmark = pytest.mark.usefixtures("each_meter_lag")


def upgrade_costs(answer: subscription_pb2.ChangePlanResponse, since: datetime, until: datetime) -> Decimal:
    """Return the price difference of Big and Small for the rest of the period."""
    bounds = int(since.timestamp()), answer.proration_at.seconds, int(until.timestamp())
    return ledgers.prorated("40.00", *bounds) - ledgers.prorated("10.00", *bounds)


async def period(tiers: Ledger) -> tuple[datetime, datetime]:
    told = await tiers.told()
    return told.period_start.ToDatetime(tzinfo=UTC), told.period_end.ToDatetime(tzinfo=UTC)


async def test_an_upgrade_charges_unreported_overage_once(tiers: Ledger) -> None:
    bounds = await period(tiers)
    await tiers.use("runs", 107)
    await tiers.advance(days=11)
    await tiers.use("runs", 23)
    upgraded = await tiers.change(plan="big")
    # The 100 included units of Small are consumed; Big includes 70 more than are used.
    await tiers.use("runs", 130)
    await tiers.over_the_period_end()
    meters = 30 * Decimal("0.10") + 30 * Decimal("0.05")
    assert await tiers.charged_by_meters() == meters
    # The second month's price is on the same invoice as the first month's usage.
    assert await tiers.charged() == 10 + upgrade_costs(upgraded, *bounds) + meters + 40
    assert await tiers.differences() == []


async def test_an_upgrade_and_a_cancellation_charge_each_unit_once(tiers: Ledger) -> None:
    bounds = await period(tiers)
    await tiers.use("runs", 120)
    await tiers.advance(days=9)
    upgraded = await tiers.change(plan="big")
    await tiers.use("runs", 101)
    await tiers.advance(days=2)
    await tiers.use("runs", 2)
    assert (await tiers.cancel(NOW)).plan == "free"
    await tiers.advance(days=40)
    await tiers.advance(hours=2)
    # 100 of Big's 200 units were consumed on Small, so 3 units are beyond.
    meters = 20 * Decimal("0.10") + 3 * Decimal("0.05")
    assert await tiers.charged_by_meters() == meters
    assert await tiers.charged() == 10 + upgrade_costs(upgraded, *bounds) + meters
    assert {one["status"] for one in await tiers.invoices()} == {"paid"}
    assert await tiers.differences() == []


async def test_what_is_recorded_while_the_plan_changes_is_charged_by_the_terms_that_it_was_recorded_under(
    tiers: Ledger,
) -> None:
    bounds = await period(tiers)
    await tiers.use("runs", 100)
    await tiers.advance(days=3)
    done = asyncio.Event()

    async def keep_recording() -> None:
        while not done.is_set():
            await tiers.use("runs", 10)

    recording = asyncio.create_task(keep_recording())
    upgraded = await tiers.change(plan="big")
    done.set()
    await recording
    events = await tiers.world.rows(tables.usage_events)
    on_small, on_big = (sum(one.billable for one in events if one.plan == plan) for plan in ("small", "big"))
    assert on_small
    assert sum(one.units for one in events) == 100 + on_small + on_big + sum(
        one.units - one.billable for one in events if one.plan == "big"
    )
    await tiers.over_the_period_end()
    await tiers.over_the_period_end()
    meters = on_small * Decimal("0.10") + on_big * Decimal("0.05")
    assert await tiers.charged_by_meters() == meters
    assert await tiers.charged() == 10 + upgrade_costs(upgraded, *bounds) + meters + 80
    assert await tiers.differences() == []


async def test_a_downgrade_at_the_period_s_end_and_a_cancellation_in_the_next(tiers: Ledger) -> None:
    bounds = await period(tiers)
    upgraded = await tiers.change(plan="big")
    await tiers.change(AT_PERIOD_END, plan="small")
    await tiers.use("runs", 212)
    await tiers.over_the_period_end()
    assert (await tiers.told()).plan == "small"
    await tiers.use("runs", 103)
    await tiers.cancel(AT_PERIOD_END)
    await tiers.over_the_period_end()
    assert (await tiers.told()).plan == "free"
    meters = 12 * Decimal("0.05") + 3 * Decimal("0.10")
    assert await tiers.charged_by_meters() == meters
    assert await tiers.charged() == 10 + upgrade_costs(upgraded, *bounds) + 10 + meters
    assert await tiers.differences() == []


async def test_a_level_is_charged_by_its_peak_on_each_plan(tiers: Ledger) -> None:
    """Small: 5 seats, 3 of them beyond. Big: the same 5 are 1 beyond, which was charged; 7 seats are two more."""

    async def seats(level: int) -> usage_pb2.RecordUsageResponse:
        request = usage_pb2.RecordUsageRequest(
            account_id="org_1", event_id=f"seats_{level}", meter="seats", level=level
        )
        return await tiers.world.billing.usage.RecordUsage(request)

    bounds = await period(tiers)
    assert (await seats(5)).billable == 3
    await tiers.advance(days=10)
    upgraded = await tiers.change(plan="big")
    grown = (await seats(7)).billable
    await tiers.advance(days=1)
    await seats(1)
    rows = await tiers.world.rows(tables.usage_counters, tables.usage_counters.c.meter == "seats")
    assert sum(row.billable for row in rows) == 3 + grown
    await tiers.over_the_period_end()
    meters = 3 * Decimal("3.00") + grown * Decimal("2.00")
    assert await tiers.charged_by_meters() == meters
    assert await tiers.charged() == 10 + upgrade_costs(upgraded, *bounds) + meters + 40
    assert await tiers.differences() == []


async def correct(tiers: Ledger, event_id: str, quantity: int) -> usage_pb2.CorrectUsageResponse:
    request = usage_pb2.CorrectUsageRequest(
        account_id="org_1", event_id=event_id, correction_id=f"less_{event_id}_{quantity}", quantity=quantity
    )
    return await tiers.world.billing.usage.CorrectUsage(request)


async def use_as(tiers: Ledger, event_id: str, quantity: int) -> None:
    await tiers.world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter="runs", quantity=quantity)
    )


async def test_a_correction_after_the_usage_was_sent_is_on_the_same_invoice(tiers: Ledger) -> None:
    await use_as(tiers, "many", 150)
    await tiers.advance(hours=1)
    assert {row.state for row in await tiers.world.rows(tables.usage_reports)} == {"sent"}
    await correct(tiers, "many", 18)
    await tiers.over_the_period_end()
    assert await tiers.charged_by_meters() == 32 * Decimal("0.10")
    assert await tiers.meter_quantities() == {"tiers_small_runs": 32}
    assert await tiers.charged() == 10 + 10 + Decimal("3.20")
    assert await tiers.differences() == []


async def test_a_correction_after_an_upgrade_gives_back_what_was_charged_last(tiers: Ledger) -> None:
    bounds = await period(tiers)
    await use_as(tiers, "small", 120)
    await tiers.advance(days=5)
    upgraded = await tiers.change(plan="big")
    await use_as(tiers, "big", 110)
    await tiers.advance(days=1)
    # 20 units beyond on Small, 10 on Big: the ten are taken back first, then five of the twenty.
    await correct(tiers, "small", 15)
    await tiers.over_the_period_end()
    await tiers.over_the_period_end()
    meters = 15 * Decimal("0.10")
    assert await tiers.charged_by_meters() == meters
    assert await tiers.charged() == 10 + upgrade_costs(upgraded, *bounds) + meters + 80
    assert await tiers.differences() == []


async def test_a_correction_after_the_subscription_has_ended_is_a_credit(tiers: Ledger) -> None:
    await use_as(tiers, "many", 150)
    await tiers.advance(days=1)
    await tiers.cancel(NOW)
    await tiers.advance(days=1)
    assert await tiers.charged() == 10 + 50 * Decimal("0.10")
    await correct(tiers, "many", 20)
    await tiers.advance(days=2)
    assert await tiers.charged() == 10 + 30 * Decimal("0.10")
    assert await tiers.differences() == []


async def test_usage_of_the_last_minutes_that_arrives_late_is_charged_by_the_old_plan(tiers: Ledger) -> None:
    """Big begins at the period's end; for half an hour, usage from before is charged on Small's terms."""
    await tiers.change(AT_PERIOD_END, plan="big")
    await tiers.use("runs", 100)
    ends = (await tiers.told()).period_end.ToDatetime(tzinfo=UTC)
    await tiers.until(ends + timedelta(minutes=20))
    assert (await tiers.told()).plan == "big"
    late = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="late", meter="runs", quantity=4)
    late.occurred_at.FromDatetime(ends - timedelta(minutes=1))
    recorded = await tiers.world.billing.usage.RecordUsage(late)
    assert (recorded.billable, recorded.used) == (4, 104)
    await tiers.advance(minutes=20)
    # More than half an hour late: it counts in the new period.
    later = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="later", meter="runs", quantity=3)
    later.occurred_at.FromDatetime(ends - timedelta(minutes=1))
    recorded = await tiers.world.billing.usage.RecordUsage(later)
    assert (recorded.billable, recorded.used) == (0, 3)
    await tiers.advance(hours=3)
    await tiers.over_the_period_end()
    assert await tiers.charged_by_meters() == 4 * Decimal("0.10")
    assert await tiers.charged() == 10 + 4 * Decimal("0.10") + 40 + 40
    assert await tiers.differences() == []
