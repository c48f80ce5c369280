"""A platform for agents: three consumables with grace on free, two gauges, and overage charged on the paid plans."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from billing.v1 import errors_pb2, subscription_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.metering.gauges import open_periods
from billing_svc.platform.database import tables
from tests import clocks
from tests.acceptance.accounts import (
    ALLOWED,
    DENIED,
    EXHAUSTED,
    GRACE,
    GRACE_EXPIRED,
    OVERAGE,
    PLAIN,
    REJECT,
    START,
    Account,
)

# The example of section 3, which costs 186.50 on standard.
USED = {"llm_tokens": 1_500_000, "agent_executions": 5_500, "api_calls": 120_000, "storage_gb": 105, "user_seats": 27}
OVERAGES = {"llm_tokens": "5", "agent_executions": "50", "api_calls": "20", "storage_gb": "2.50", "user_seats": "10"}
GAUGES = {"storage_gb", "user_seats"}
RENEWAL = datetime(2026, 6, 11, 9, 30, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


async def open_gauges(account: Account) -> int:
    """Run the worker's loop for gauges once."""
    catalogs, now = versions.CatalogCache(), account.now
    return await account.billing.transactions.run(lambda conn: open_periods.open_due(conn, catalogs, now))


async def counters(account: Account, meter: str) -> Mapping[datetime, tuple[int, int]]:
    """Return peak and billable units of each period."""
    table = tables.usage_counters
    query = sa.select(table.c.period_start, table.c.used, table.c.billable).where(table.c.meter == meter)
    async with account.billing.engine.connect() as connection:
        return {row.period_start: (row.used, row.billable) for row in await connection.execute(query)}


async def use(account: Account, used: Mapping[str, int]) -> None:
    for meter, quantity in used.items():
        if meter in GAUGES:
            await account.record(f"set_{meter}", meter, level=quantity)
        else:
            await account.record(f"use_{meter}", meter, quantity)


async def test_standard_charges_each_meter_beyond_what_it_includes(account: Account) -> None:
    await account.subscribe("standard")
    await use(account, USED)
    usage = await account.usage()
    assert {meter: one.used for meter, one in usage.items()} == USED
    costs = {meter: Decimal(one.projected_overage_cost.amount) for meter, one in usage.items()}
    assert costs == {meter: Decimal(cost) for meter, cost in OVERAGES.items()}
    assert Decimal(99) + sum(costs.values()) == Decimal("186.50")


@pytest.mark.parametrize("so_far", [False, True], ids=["for given quantities", "for the usage so far"])
async def test_the_documented_month_s_bill_is_186_50(account: Account, *, so_far: bool) -> None:
    request = subscription_pb2.PreviewCostRequest(plan="standard")
    if so_far:
        await account.subscribe("standard")
        await use(account, USED)
        request = subscription_pb2.PreviewCostRequest(account_id=account.account_id)
    else:
        request.usage.extend(
            subscription_pb2.MeterQuantity(meter=meter, quantity=quantity) for meter, quantity in USED.items()
        )
    bill = await account.billing.subscriptions.PreviewCost(request)
    assert (bill.total.amount, bill.total.currency) == ("186.50", "usd")
    lines = {line.meter: Decimal(line.amount.amount) for line in bill.lines}
    assert lines == {"": Decimal(99), **{meter: Decimal(cost) for meter, cost in OVERAGES.items()}}


async def test_enterprise_charges_half_and_its_seats_are_unlimited(account: Account) -> None:
    await account.subscribe("enterprise")
    used = {"llm_tokens": 10_000_000, "agent_executions": 50_000, "api_calls": 1_000_000, "storage_gb": 1_000}
    await use(account, used)
    for meter, unit_price in {
        "llm_tokens": "0.000005",
        "agent_executions": "0.05",
        "api_calls": "0.0005",
        "storage_gb": "0.25",
    }.items():
        check = await account.check(meter)
        assert (check.decision, check.reason) == (ALLOWED, OVERAGE)
        assert check.projected_overage_cost.amount == unit_price
    assert (await account.record("crowd", "user_seats", level=10**6, if_exceeded=REJECT)).unlimited


async def test_free_may_go_past_100_executions_for_24_hours_and_not_a_microsecond_longer(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("hundred", "agent_executions", 100)
    before = await account.check("agent_executions")
    assert (before.decision, before.reason) == (ALLOWED, GRACE)
    # The grace begins when usage first exceeds the limit, not when it reaches the limit.
    service_clock.advance(timedelta(hours=2))
    crossing = service_clock.now()
    answer = await account.record("101st", "agent_executions", if_exceeded=REJECT)
    assert (answer.decision, answer.reason, answer.used) == (ALLOWED, GRACE, 101)
    end = crossing + timedelta(hours=24)
    service_clock.set(end - MICROSECOND)
    check = await account.check("agent_executions")
    assert (check.decision, check.reason) == (ALLOWED, GRACE)
    assert check.grace_ends_at.ToDatetime(tzinfo=UTC) == end
    last = await account.record("last", "agent_executions", 900, if_exceeded=REJECT)
    assert (last.decision, last.billable) == (ALLOWED, 0)
    service_clock.set(end)
    check = await account.check("agent_executions")
    assert (check.decision, check.reason, list(check.upgrade_plans)) == (
        DENIED,
        GRACE_EXPIRED,
        ["standard", "enterprise"],
    )
    assert check.grace_ends_at.ToDatetime(tzinfo=UTC) == end
    assert check.resets_at.ToDatetime(tzinfo=UTC) == datetime(2026, 6, 1, tzinfo=UTC)
    assert (await account.record("late", "agent_executions", if_exceeded=REJECT)).decision == DENIED
    # Usage that has happened is recorded all the same, and the answer says that it is over the limit.
    fact = await account.record("fact", "agent_executions")
    assert (fact.decision, fact.reason, fact.over_limit, fact.used) == (ALLOWED, GRACE_EXPIRED, True, 1002)
    service_clock.set(datetime(2026, 6, 1, tzinfo=UTC))
    assert (await account.check("agent_executions")).reason == PLAIN


async def test_a_grace_ends_with_the_excess_and_begins_anew(account: Account, service_clock: clocks.StillClock) -> None:
    await account.record("much", "api_calls", 1_100)
    service_clock.advance(timedelta(hours=25))
    assert (await account.check("api_calls")).reason == GRACE_EXPIRED
    await account.correct("fix", "much", 100)
    check = await account.check("api_calls")
    assert (check.decision, check.reason) == (ALLOWED, GRACE)
    assert not check.HasField("grace_ends_at")
    await account.record("again", "api_calls")
    check = await account.check("api_calls")
    assert check.grace_ends_at.ToDatetime(tzinfo=UTC) == service_clock.now() + timedelta(hours=24)


async def test_the_fourth_seat_is_denied_on_free(account: Account) -> None:
    for n in range(3):
        assert (await account.record(f"seat_{n}", "user_seats", 1, if_exceeded=REJECT)).used == n + 1
    denied = await account.check("user_seats")
    assert (denied.decision, denied.reason, denied.used, denied.included) == (DENIED, EXHAUSTED, 3, 3)
    assert list(denied.upgrade_plans) == ["standard", "enterprise"]
    assert (await account.record("seat_4", "user_seats", 1, if_exceeded=REJECT)).decision == DENIED
    assert (await account.record("all", "user_seats", level=4, if_exceeded=REJECT)).decision == DENIED
    assert (await account.check("storage_gb", 2)).decision == DENIED


async def test_a_quiet_month_with_27_seats_owes_two_of_them(account: Account, service_clock: clocks.StillClock) -> None:
    await account.subscribe("standard")
    await account.record("seats", "user_seats", level=27)
    # Due once after it is new, because a plan could have been bought at that moment.
    assert await open_gauges(account) == 1
    assert await open_gauges(account) == 0
    for month in (6, 7):
        service_clock.set(RENEWAL.replace(month=month) - MICROSECOND)
        assert await open_gauges(account) == 0
        service_clock.set(RENEWAL.replace(month=month))
        assert await open_gauges(account) == 1
        assert await open_gauges(account) == 0
    periods = [START, RENEWAL, RENEWAL.replace(month=7)]
    assert await counters(account, "user_seats") == dict.fromkeys(periods, (27, 2))
    usage = (await account.usage("user_seats"))["user_seats"]
    assert (usage.used, usage.peak, usage.billable) == (27, 27, 2)
    assert Decimal(usage.projected_overage_cost.amount) == Decimal(10)


async def test_a_quiet_month_is_told_before_the_worker_opened_it(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.subscribe("standard")
    await account.record("seats", "user_seats", level=27)
    service_clock.set(RENEWAL)
    usage = (await account.usage("user_seats"))["user_seats"]
    assert (usage.used, usage.peak, usage.billable) == (27, 27, 2)


async def test_a_period_is_charged_for_its_peak(account: Account, service_clock: clocks.StillClock) -> None:
    """Seats that come and go within a month are charged once, for the peak."""
    await account.subscribe("standard")
    billable = [
        (await account.record("a", "user_seats", level=26)).billable,
        (await account.record("b", "user_seats", 2)).billable,
        (await account.record("c", "user_seats", -8)).billable,
        (await account.record("d", "user_seats", 7)).billable,
        (await account.record("e", "user_seats", 3)).billable,
    ]
    assert billable == [1, 2, 0, 0, 2]
    assert await counters(account, "user_seats") == {START: (30, 5)}
    check = await account.check("user_seats")
    assert (check.used, check.decision, check.reason) == (30, ALLOWED, OVERAGE)
    # The next period begins with the present level, not with the peak.
    await account.record("f", "user_seats", level=20)
    service_clock.set(RENEWAL)
    await open_gauges(account)
    assert (await counters(account, "user_seats"))[RENEWAL] == (20, 0)


async def test_levels_of_one_batch_follow_each_other_from_the_account_s_first_event_on(account: Account) -> None:
    events = [
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="set", meter="user_seats", level=3),
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="one_leaves", meter="user_seats", quantity=-1),
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="three_leave", meter="user_seats", quantity=-3),
    ]
    batch = await account.billing.usage.BatchRecordUsage(usage_pb2.BatchRecordUsageRequest(events=events))
    assert [result.answer.used for result in batch.results[:2]] == [3, 2]
    assert batch.results[2].error.reason == errors_pb2.ERROR_REASON_LEVEL_BELOW_ZERO
    assert (await account.check("user_seats")).used == 2


async def test_a_level_that_is_older_than_the_last_one_has_no_effect(account: Account) -> None:
    await account.subscribe("standard")
    await account.record("newer", "storage_gb", level=40)
    older = await account.record("older", "storage_gb", level=90, occurred_at=START - timedelta(minutes=1))
    assert (older.used, older.superseded, older.cost) == (40, True, 0)
    assert await counters(account, "storage_gb") == {START: (40, 0)}


async def test_a_change_that_happened_before_the_last_set_is_contained_in_it(account: Account) -> None:
    await account.subscribe("standard")
    await account.record("set", "user_seats", level=30, occurred_at=START + timedelta(minutes=1))
    late = await account.record("late", "user_seats", 3, occurred_at=START)
    assert (late.used, late.superseded, late.cost, late.billable) == (30, True, 0, 0)
    # Nor is it refused for what it would have done to the level.
    fallen = await account.record("fallen", "user_seats", -31, occurred_at=START)
    assert (fallen.used, fallen.superseded) == (30, True)
    # The set is of a clock that is ahead: a change that is made now comes after it.
    made_now = await account.record("now", "user_seats", 2)
    assert (made_now.used, made_now.superseded) == (32, False)
    after = await account.record("after", "user_seats", 1, occurred_at=START + timedelta(minutes=2))
    assert (after.used, after.superseded) == (33, False)
    assert await counters(account, "user_seats") == {START: (33, 8)}


async def test_a_level_stays_when_the_subscription_begins_and_ends(
    account: Account, service_clock: clocks.StillClock
) -> None:
    """The period of each plan is charged for the level that it began with."""
    await account.record("seats", "user_seats", level=3)
    service_clock.advance(timedelta(days=1))
    subscription = await account.subscribe("standard")
    await account.record("more", "user_seats", level=27)
    service_clock.advance(timedelta(days=1))
    await account.tell(subscription.but(status="canceled", ended_at=service_clock.now()))
    await open_gauges(account)
    check = await account.check("user_seats")
    assert (check.plan, check.decision, check.used, check.included) == ("free", DENIED, 27, 3)
    assert await counters(account, "user_seats") == {
        datetime(2026, 5, 1, tzinfo=UTC): (3, 0),
        START + timedelta(days=1): (27, 2),
        START + timedelta(days=2): (27, 0),
    }


async def test_alerts_are_raised_once_at_80_100_and_120_percent(account: Account) -> None:
    table = tables.usage_alerts
    query = sa.select(table.c.threshold_percent, table.c.severity, table.c.used).order_by(table.c.threshold_percent)
    seen = []
    for n, quantity in enumerate([79, 1, 19, 1, 19, 1, 50]):
        await account.record(f"e_{n}", "agent_executions", quantity)
        async with account.billing.engine.connect() as connection:
            seen.append([tuple(row) for row in await connection.execute(query)])
    warning, critical, exceeded = (80, "warning", 80), (100, "critical", 100), (120, "exceeded", 120)
    assert seen == [
        [],
        [warning],
        [warning],
        [warning, critical],
        [warning, critical],
        [warning, critical, exceeded],
        [warning, critical, exceeded],
    ]
