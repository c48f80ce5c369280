"""Anchors and trials that a person moves at Stripe: each unit is charged once, by the terms of its time (ADR 0019)."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing.v1 import quota_pb2, usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.money.moving import CATALOG, begun, shown


@pytest.fixture
async def account(ledger: Ledger) -> Ledger:
    await ledger.sell(CATALOG)
    return ledger


async def counters(account: Ledger, meter: str = "runs") -> list[tuple[datetime, datetime, int, int]]:
    """Return start, end, used and billable of the account's counters, the oldest first."""
    found = await account.world.rows(tables.usage_counters, tables.usage_counters.c.meter == meter)
    return sorted((row.period_start, row.period_end, row.used, row.billable) for row in found)


async def late(account: Ledger, quantity: int, occurred_at: datetime) -> usage_pb2.RecordUsageResponse:
    request = usage_pb2.RecordUsageRequest(
        account_id="org_1", event_id=f"late_{quantity}", meter="runs", quantity=quantity
    )
    request.occurred_at.FromDatetime(occurred_at)
    return await account.world.billing.usage.RecordUsage(request)


async def quota_began(account: Ledger) -> datetime:
    return (await account.told()).quota_period_start.ToDatetime(tzinfo=UTC)


async def test_a_trial_added_in_the_second_period_neither_overlaps_nor_leaves_a_gap(account: Ledger) -> None:
    support = await begun(account)
    await account.over_the_period_end()
    second = (await account.told()).quota_period_start.ToDatetime(tzinfo=UTC)
    await account.advance(days=9)
    assert (await account.use("runs", 13)).billable == 3
    await account.advance(hours=1)
    added, ends = support.now, support.now + timedelta(days=10)
    await support.trial_until(ends)
    told = await account.told()
    assert abs(told.quota_period_start.ToDatetime(tzinfo=UTC) - added) <= timedelta(seconds=2)
    assert told.quota_period_end.ToDatetime(tzinfo=UTC) == ends.replace(microsecond=0)
    # The billing period that Stripe opened gives the allowance once; usage in the trial is free.
    assert (await account.use("runs", 14)).billable == 4
    await account.until(ends + timedelta(hours=2))
    assert (await account.use("runs", 11)).billable == 1
    await account.over_the_period_end()
    spans = await counters(account)
    assert [(used, billable) for _, _, used, billable in spans] == [(13, 3), (14, 4), (11, 1)]
    assert spans[0][0] == second
    assert [end for _, end, _, _ in spans[:2]] == [start for start, _, _, _ in spans[1:]]
    assert await account.charged_by_meters() == 3 + 1
    assert await account.differences() == []


async def test_units_from_before_an_anchor_reset_land_in_the_period_that_was(account: Ledger) -> None:
    support = await begun(account)
    await account.over_the_period_end()
    await account.advance(days=9)
    await account.use("runs", 10)
    start = await quota_began(account)
    before = support.now
    await account.advance(minutes=5)
    await support.reset_anchor()
    reset = await quota_began(account)
    await account.use("runs", 7)
    answer = await late(account, 4, before)
    assert (answer.billable, answer.period_start.ToDatetime(UTC), answer.period_end.ToDatetime(UTC)) == (
        4,
        start,
        reset,
    )
    await account.until_period_end(hours=3)
    assert [(used, billable) for _, _, used, billable in await counters(account)] == [(14, 4), (7, 0)]
    assert await shown(account, before) == (start, reset, 14)
    assert await shown(account, reset + timedelta(days=1)) == (
        reset,
        await quota_began(account),
        7,
    )
    assert await account.charged_by_meters() == 4
    assert await account.differences() == []


async def test_late_units_of_a_period_without_a_counter_have_the_terms_of_then(account: Ledger) -> None:
    """A change to another interval resets the anchor; the plan of before charges what came before."""
    support = await begun(account)
    await account.advance(days=9)
    before = support.now
    await account.advance(minutes=5)
    await account.change(plan="year")
    answer = await late(account, 12, before)
    assert answer.billable == 2
    assert answer.period_end.ToDatetime(UTC) == await quota_began(account)
    await account.advance(hours=4)
    assert await account.charged_by_meters() == 2


@pytest.mark.parametrize("attempted", [True, False])
async def test_usage_from_before_a_trial_is_charged_though_it_is_sent_after_it_began(
    account: Ledger, *, attempted: bool
) -> None:
    support = await begun(account)
    await account.advance(days=3)
    await account.use("runs", 15)
    if attempted:
        await account.world.sandbox.fault("unavailable", path="/v1/billing/meter_events", method="POST")
        await account.work()
    await support.trial_until(support.now + timedelta(days=5))
    await account.world.sandbox.control("DELETE", "faults")
    await account.advance(hours=4)
    assert await account.charged_by_meters() == 5
    await account.advance(days=40)
    assert await account.charged_by_meters() == 5
    assert await account.differences() == []


async def test_usage_sent_before_a_trial_was_added_is_charged_once(account: Ledger) -> None:
    support = await begun(account)
    await account.advance(days=3)
    await account.use("runs", 15)
    await account.work()
    await support.trial_until(support.now + timedelta(days=5))
    await account.advance(days=1)
    await account.use("runs", 30)
    await account.advance(days=40)
    assert await account.charged_by_meters() == 5
    assert await account.differences() == []


async def test_an_extended_trial_and_an_ended_trial_are_intervals(account: Ledger) -> None:
    support = await begun(account, plan="tried")
    await account.advance(days=8)
    await account.use("runs", 12)
    await account.work()
    await support.trial_until(support.now + timedelta(days=6))
    extended = await quota_began(account)
    await account.advance(days=2)
    await account.use("runs", 13)
    await account.work()
    await support.end_trial()
    ended = await quota_began(account)
    await account.use("runs", 14)
    await account.over_the_period_end()
    spans = await counters(account)
    assert [(used, billable) for _, _, used, billable in spans] == [(12, 2), (13, 3), (14, 4)]
    assert [start for start, *_ in spans[1:]] == [extended, ended]
    assert [end for _, end, _, _ in spans[:2]] == [start for start, _, _, _ in spans[1:]]
    assert await account.charged_by_meters() == 4
    assert await account.differences() == []


async def test_a_move_gives_a_calendar_month_no_second_allowance(account: Ledger) -> None:
    now = account.world.billing.clock.now()
    await account.until(datetime(now.year + 1, 3, 2, 12, tzinfo=UTC))
    support = await begun(account, plan="calendar")
    await account.use("runs", 8)
    await account.advance(days=3)
    await support.reset_anchor()
    answer = await account.use("runs", 5)
    assert (answer.used, answer.remaining) == (13, 0)
    assert (answer.period_start.ToDatetime(UTC).day, answer.period_end.ToDatetime(UTC).day) == (2, 1)
    assert [used for _, _, used, _ in await counters(account)] == [13]


async def test_a_hold_from_before_a_move_takes_up_room_and_settles(account: Ledger) -> None:
    support = await begun(account)
    await account.advance(days=3)
    request = quota_pb2.CheckQuotaRequest(
        account_id="org_1", meter="runs", quantity=6, reserve=True, request_id="hold_1"
    )
    held = await account.world.billing.quota.CheckQuota(request)
    await account.advance(minutes=1)
    await support.reset_anchor()
    assert (await account.check("runs")).remaining == 4
    settled = await account.world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(
            account_id="org_1",
            event_id="settling",
            meter="runs",
            quantity=6,
            reservation_id=held.reservation_id,
        )
    )
    assert (settled.used, settled.reserved, settled.remaining) == (6, 0, 4)
    assert [row.state for row in await account.world.rows(tables.reservations)] == ["settled"]


async def test_a_gauge_is_charged_by_its_peak_in_each_period_that_stripe_opened(account: Ledger) -> None:
    support = await begun(account)

    async def seats(level: int) -> None:
        request = usage_pb2.RecordUsageRequest(
            account_id="org_1", event_id=f"seats_{level}", meter="seats", level=level
        )
        await account.world.billing.usage.RecordUsage(request)

    await seats(5)
    await account.advance(days=3)
    await seats(4)
    await account.advance(hours=1)
    await support.reset_anchor()
    await account.work()
    await account.over_the_period_end()
    spans = await counters(account, "seats")
    assert [(used, billable) for _, _, used, billable in spans][:2] == [(5, 3), (4, 2)]
    assert [end for _, end, _, _ in spans[:2]] == [start for start, _, _, _ in spans[1:]]
    assert await account.charged_by_meters() == (3 + 2) * Decimal("3.00")
    assert await account.differences() == []
