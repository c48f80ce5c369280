"""Races with a change of plan, and usage after a change: every unit is charged on the terms of its time."""

import asyncio
import contextlib
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import grpc
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import usage_pb2
from billing_svc.metering.usage import record_usage
from billing_svc.metering.usage import rules as usage_rules
from billing_svc.platform.database import direct, tables
from billing_svc.usage_export import accrual, sending
from tests.billing_svc.money.ledger import ANNIVERSARY, Ledger


async def correct(ledger: Ledger, event_id: str, quantity: int) -> None:
    await ledger.world.billing.usage.CorrectUsage(
        usage_pb2.CorrectUsageRequest(
            account_id="org_1", correction_id=uuid.uuid4().hex, event_id=event_id, quantity=quantity
        )
    )


async def over_the_quota_period(ledger: Ledger) -> None:
    ends = (await ledger.told()).quota_period_end.ToDatetime(tzinfo=UTC)
    await ledger.until(ends + timedelta(hours=2))


async def test_the_first_units_beyond_are_recorded_while_the_plan_changes(tiers: Ledger) -> None:
    await tiers.use("runs", 100)
    await tiers.work()

    async def use(method: str, path: str) -> int | None:
        if method == "POST" and path.startswith("/v1/subscriptions/"):
            tiers.world.sandbox.faults.clear()
            await tiers.use("runs", 10)
        return None

    tiers.world.sandbox.faults.before = use
    await tiers.change(plan="big")
    # 100 of 200 units are consumed.
    await tiers.use("runs", 130)
    await tiers.over_the_period_end()
    assert await tiers.charged_by_meters() == 10 * Decimal("0.10") + 30 * Decimal("0.05")


@pytest.mark.usefixtures("each_meter_lag")
async def test_a_record_that_read_its_terms_before_the_plan_changed_is_charged_once(
    tiers: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tiers.use("runs", 105)
    await tiers.work()
    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    fetch_each = direct.fetch_each

    async def slow(conn: AsyncConnection, *calls: direct.Call) -> list[list[direct.Row]]:
        rows = []
        for call in calls:
            if b"FOR UPDATE" in call[0].text and not has_read.is_set():
                has_read.set()
                await may_go_on.wait()
            rows += await fetch_each(conn, call)
        return rows

    monkeypatch.setattr(direct, "fetch_each", slow)
    recording = asyncio.create_task(tiers.use("runs", 10))
    await has_read.wait()
    await tiers.change(plan="big")
    # As another server process would record it: 100 of 200 units are consumed.
    await tiers.world.billing.transactions.run(
        lambda conn: record_usage.record(
            conn, tiers.catalogs, [new_event("runs", 110)], tiers.world.billing.clock.now()
        )
    )
    may_go_on.set()
    await recording
    await tiers.over_the_period_end()
    await tiers.advance(hours=5)  # what the meter counted too late for its line has an invoice of its own by then
    assert await tiers.charged_by_meters() == 15 * Decimal("0.10") + 10 * Decimal("0.05")


def new_event(meter: str, quantity: int) -> usage_rules.NewEvent:
    sent = usage_rules.SentEvent(meter, None, quantity, None, None, {})
    return usage_rules.NewEvent("org_1", uuid.uuid4().hex, sent, 0, False, "", "test", "test")  # noqa: FBT003


@pytest.mark.usefixtures("each_meter_lag")
async def test_after_a_correction_that_reached_back_the_present_plan_s_price_holds(tiers: Ledger) -> None:
    await tiers.use("runs", 110)
    await tiers.work()
    await tiers.change(plan="big")
    await tiers.use("runs", 100)
    await tiers.use("runs", 3)
    await tiers.work()
    events = await tiers.world.rows(tables.usage_events)
    await correct(tiers, next(one.event_id for one in events if one.units == 110), 5)
    await tiers.work()
    # Takes back 3 units of Big and 2 of Small.
    await tiers.use("runs", 40)
    await tiers.over_the_period_end()
    await tiers.advance(hours=5)  # what the meter counted too late for its line has an invoice of its own by then
    assert await tiers.charged_by_meters() == 8 * Decimal("0.10") + 40 * Decimal("0.05")


async def test_switched_on_again_while_the_end_is_on_its_way_it_stays_on(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    await ledger.switch(on=True)
    await ledger.work()
    overtaking: list[asyncio.Task[object]] = []

    async def slow(method: str, path: str) -> int | None:
        if method == "POST" and path.startswith("/v1/subscriptions/"):
            if not overtaking:
                overtaking.append(asyncio.create_task(ledger.switch(on=True)))
            # On a slow machine Stripe's client repeats the call; the repeat must not arrive before the overtaking call
            # ends.
            await asyncio.shield(overtaking[0])
        return None

    ledger.world.sandbox.faults.before = slow
    await ledger.switch(on=False)
    assert overtaking
    await overtaking[0]
    # Long enough for the worker to finish what was too slow for the call.
    await ledger.advance(minutes=2)
    assert (await ledger.told()).pay_as_you_go
    assert [one["cancel_at"] for one in await ledger.at_stripe()] == [None]


async def test_switched_on_again_while_the_end_is_unknown_it_stays_on(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    await ledger.switch(on=True)
    await ledger.work()
    faults, met = ledger.world.sandbox.faults, asyncio.Event()

    async def overtake(method: str, path: str) -> int | None:
        if method == "POST" and path.startswith("/v1/subscriptions/") and not met.is_set():
            met.set()
            await ledger.switch(on=True)
        return None

    async def lose(method: str, path: str) -> int | None:
        return 503 if method == "POST" and path.startswith("/v1/subscriptions/") else None

    faults.before, faults.after = overtake, lose
    await ledger.switch(on=False)
    assert met.is_set()
    faults.clear()
    await ledger.advance(minutes=2)
    assert (await ledger.told()).pay_as_you_go
    assert [one["cancel_at"] for one in await ledger.at_stripe()] == [None]
    assert await ledger.world.rows(tables.subscription_duties) == []


async def test_whoever_signs_up_by_switching_it_on_has_a_whole_first_month(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    await ledger.switch(on=True)
    (made,) = await ledger.at_stripe()
    assert made["items"]["data"][0]["current_period_end"] == (await ledger.told()).quota_period_end.seconds


async def test_a_correction_after_the_end_of_a_month_since_signup(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    await ledger.use("credits", 10)
    await ledger.switch(on=True)
    await ledger.work()
    await ledger.use("credits", 50)
    events = await ledger.world.rows(tables.usage_events)
    await over_the_quota_period(ledger)
    # The overage is on the invoice of its own month.
    assert await ledger.charged_by_meters() == 50 * Decimal("0.10")
    await correct(ledger, next(one.event_id for one in events if one.units == 50), 20)
    await ledger.work()
    await over_the_quota_period(ledger)
    assert await ledger.charged_by_meters() == 30 * Decimal("0.10")


async def test_a_correction_in_a_month_since_a_signup_on_the_31st(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    clock = ledger.world.billing.clock
    await ledger.until(datetime(2027, 1, 31, 12, tzinfo=UTC))
    await ledger.use("credits", 1)
    await ledger.until(datetime(2027, 2, 10, 12, tzinfo=UTC))
    await ledger.switch(on=True)
    await ledger.until(datetime(2027, 3, 5, 12, tzinfo=UTC))
    await ledger.use("credits", 60)
    events = await ledger.world.rows(tables.usage_events)
    await ledger.work()
    # Stripe's period ended on the 28th; the quota period lasts until the 31st.
    await ledger.until(datetime(2027, 3, 30, 12, tzinfo=UTC))
    assert clock.now().month == 3
    await correct(ledger, next(one.event_id for one in events if one.units == 60), 20)
    await ledger.work()
    await ledger.until(datetime(2027, 5, 5, 12, tzinfo=UTC))
    assert await ledger.charged_by_meters() == 30 * Decimal("0.10")


async def test_usage_that_stripe_could_not_have_in_its_own_period_is_charged_once(ledger: Ledger) -> None:
    await ledger.sell(ANNIVERSARY)
    await ledger.until(datetime(2027, 1, 31, 12, tzinfo=UTC))
    await ledger.use("credits", 1)
    await ledger.until(datetime(2027, 2, 10, 12, tzinfo=UTC))
    await ledger.switch(on=True)
    await ledger.work()
    await ledger.until(datetime(2027, 3, 28, 11, 0, tzinfo=UTC))
    await ledger.use("credits", 60)
    billing, catalogs = ledger.world.billing, ledger.catalogs
    await accrual.Accrual(billing.transactions, catalogs, billing.clock, timedelta(), timedelta()).seal_due()
    # Stripe is away for a day; the quota period lasts until the 31st.

    async def away(_method: str, path: str) -> int | None:
        return 503 if path.startswith("/v1/billing/meter_events") else None

    ledger.world.sandbox.faults.before = away
    await ledger.until(datetime(2027, 3, 29, 12, tzinfo=UTC))
    ledger.world.sandbox.faults.clear()
    await ledger.world.advance(timedelta(minutes=30), ledger.work, apart=timedelta(minutes=5))
    await ledger.until(datetime(2027, 5, 5, 12, tzinfo=UTC))
    assert await ledger.charged_by_meters() == 50 * Decimal("0.10")


async def test_usage_after_a_change_that_is_not_known_here_yet(tiers: Ledger) -> None:
    await tiers.use("runs", 100)
    await tiers.work()
    changed = False

    async def lost(method: str, path: str) -> int | None:
        nonlocal changed
        changed = changed or (method == "POST" and path.startswith("/v1/subscriptions/"))
        return 503 if changed and method == "GET" and path.startswith("/v1/subscriptions/") else None

    tiers.world.sandbox.faults.before = lost
    with contextlib.suppress(grpc.aio.AioRpcError):
        await tiers.change(plan="big")
    assert changed
    assert (await tiers.told()).plan == "small"
    await tiers.use("runs", 50)
    await tiers.world.advance(timedelta(seconds=2), deliver=False)
    billing, catalogs, at_once = tiers.world.billing, tiers.catalogs, timedelta()
    await accrual.Accrual(billing.transactions, catalogs, billing.clock, at_once, at_once).seal_due()
    await sending.Sender(billing.transactions, catalogs, tiers.world.stripe, billing.clock).send_due()
    tiers.world.sandbox.faults.clear()
    await tiers.work()
    assert (await tiers.told()).plan == "big"
    await tiers.over_the_period_end()
    await tiers.advance(hours=3)
    assert await tiers.charged_by_meters() == 50 * Decimal("0.10")
