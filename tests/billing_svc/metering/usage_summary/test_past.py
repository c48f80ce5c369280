"""GetUsage of past periods: what their counters kept, and where none did, the period that the rules give."""

from datetime import UTC, datetime, timedelta

import pytest

from billing.v1 import admin_pb2, usage_pb2
from tests import clocks
from tests.acceptance.accounts import START, Account
from tests.billing_svc import books

JUNE, JULY = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)


@pytest.fixture
def catalog_name() -> str:
    return "agentplatform"


async def at(account: Account, instant: datetime, *meters: str) -> usage_pb2.GetUsageResponse:
    request = usage_pb2.GetUsageRequest(account_id=account.account_id, meters=meters)
    request.period_containing.FromDatetime(instant)
    return await account.billing.usage.GetUsage(request)


def bounds(told: usage_pb2.GetUsageResponse) -> tuple[datetime, datetime]:
    return told.period_start.ToDatetime(UTC), told.period_end.ToDatetime(UTC)


async def test_past_period_is_told_on_the_terms_that_it_had(account: Account, service_clock: clocks.StillClock) -> None:
    await account.subscribe("standard")
    await account.record("e1", "agent_executions", 5_010)
    service_clock.set(datetime(2026, 6, 20, tzinfo=UTC))
    # The same subscription, on another plan: today's terms are others.
    await account.subscribe("enterprise", since=START)
    told = await at(account, START + timedelta(days=3))
    assert bounds(told) == (START, START.replace(month=6))
    assert (told.plan, told.plan_name) == ("standard", "Standard")
    lines = {one.meter: one for one in told.meters}
    line = lines["agent_executions"]
    assert (line.used, line.included, line.billable, line.projected_overage_cost.amount) == (5_010, 5_000, 10, "1.00")
    # A meter without a counter is told on the last terms of that period.
    assert (lines["api_calls"].used, lines["api_calls"].included) == (0, 100_000)
    assert (await at(account, service_clock.now())).plan == "enterprise"


async def test_last_level_and_peak_of_a_gauge_stay_with_their_period(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("s1", "storage_gb", level=8)
    await account.record("s2", "storage_gb", -3)
    service_clock.set(datetime(2026, 6, 2, tzinfo=UTC))
    await account.record("s3", "storage_gb", level=1)
    [past] = (await at(account, START, "storage_gb")).meters
    assert (past.used, past.peak) == (5, 8)
    [present] = (await at(account, service_clock.now(), "storage_gb")).meters
    assert (present.used, present.peak) == (1, 5)


async def test_period_that_no_counter_covers_is_told_with_zeros(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("e1", "api_calls", 7)
    service_clock.set(datetime(2026, 9, 9, tzinfo=UTC))
    told = await at(account, datetime(2026, 7, 14, tzinfo=UTC))
    assert bounds(told) == (JULY, datetime(2026, 8, 1, tzinfo=UTC))
    assert (told.plan, {one.used for one in told.meters}) == ("free", {0})
    assert [(one.meter, one.used) for one in (await at(account, START, "api_calls")).meters] == [("api_calls", 7)]


async def test_period_ends_where_a_subscription_began(account: Account, service_clock: clocks.StillClock) -> None:
    await account.record("e1", "api_calls", 7)
    bought = START + timedelta(days=5)
    service_clock.set(bought)
    await account.subscribe("standard")
    service_clock.set(datetime(2026, 7, 20, tzinfo=UTC))
    before = await at(account, START)
    assert bounds(before) == (datetime(2026, 5, 1, tzinfo=UTC), bought)
    assert (before.plan, before.meters[2].used) == ("free", 7)
    # In force then, though nothing was used under it and the counter of before foresaw the end of May.
    after = await at(account, bought + timedelta(days=1))
    assert bounds(after) == (bought, bought.replace(month=6))
    assert (after.plan, {one.used for one in after.meters}) == ("standard", {0})


async def test_period_of_a_subscription_that_is_long_over_is_found(
    account: Account, service_clock: clocks.StillClock
) -> None:
    bought, ended = START, START + timedelta(days=10)
    subscription = await account.subscribe("standard")
    await account.record("e1", "api_calls", 100_001)
    service_clock.set(ended)
    await account.tell(subscription.but(status="canceled", ended_at=ended))
    service_clock.set(datetime(2026, 12, 1, tzinfo=UTC))
    told = await at(account, bought + timedelta(days=2), "api_calls")
    assert bounds(told) == (bought, ended)
    assert (told.plan, told.meters[0].billable, told.meters[0].projected_overage_cost.amount) == (
        "standard",
        1,
        "0.001",
    )
    told = await at(account, ended, "api_calls")
    assert bounds(told) == (ended, JUNE)
    assert (told.plan, told.meters[0].used) == ("free", 0)


async def test_late_event_and_correction_show_in_their_period(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("e1", "api_calls", 7)
    service_clock.set(JUNE + timedelta(minutes=10))
    await account.record("e2", "api_calls", 5, occurred_at=JUNE - timedelta(hours=1))
    await account.correct("c1", "e1", 2)
    [line] = (await at(account, START, "api_calls")).meters
    assert line.used == 10
    assert (await account.usage("api_calls"))["api_calls"].used == 0
    await books.assert_balanced(account.billing.engine)


async def test_override_of_then_is_told_and_that_of_now_is_not(
    account: Account, service_clock: clocks.StillClock
) -> None:
    async def override(included: int) -> None:
        await account.billing.admin.SetOverride(
            admin_pb2.SetOverrideRequest(
                account_id=account.account_id,
                meter="api_calls",
                included=included,
                note="a test",
                request_id=f"r{included}",
            )
        )

    await override(3_000)
    await account.record("e1", "api_calls", 1_500)
    await account.record("e2", "llm_tokens", 1)
    service_clock.set(JUNE + timedelta(days=3))
    await override(9_000)
    lines = {one.meter: one for one in (await at(account, START)).meters}
    told = lines["api_calls"]
    assert (told.included, told.overridden, told.percent, told.remaining) == (3_000, True, 50, 1_500)
    assert (lines["llm_tokens"].included, lines["llm_tokens"].overridden) == (10_000, False)
    assert (await account.usage("api_calls"))["api_calls"].included == 9_000
