"""Scraping and automation: no quota without a subscription; usage resets on the first of each month."""

from datetime import UTC, datetime, timedelta

import pytest

from tests import clocks
from tests.acceptance.accounts import ALLOWED, DENIED, EXHAUSTED, NOT_IN_PLAN, PLAIN, REJECT, START, Account
from tests.billing_svc import books

JUNE = datetime(2026, 6, 1, tzinfo=UTC)


async def test_without_a_subscription_there_is_nothing(account: Account) -> None:
    for meter in ("tokens", "api_calls", "scraping_tasks"):
        check = await account.check(meter)
        assert (check.plan, check.decision, check.reason) == ("none", DENIED, NOT_IN_PLAN)
        assert list(check.upgrade_plans) == ["basic", "pro", "enterprise"]
    # Usage that is recorded all the same is counted, and never charged.
    answer = await account.record("e", "tokens", 7)
    assert (answer.decision, answer.reason, answer.used, answer.billable) == (ALLOWED, NOT_IN_PLAN, 7, 0)


@pytest.mark.parametrize(
    ("plan", "limits"),
    [
        ("basic", {"tokens": 100_000, "api_calls": 1_000, "scraping_tasks": 100}),
        ("pro", {"tokens": 1_000_000, "api_calls": 10_000, "scraping_tasks": 1_000}),
    ],
)
async def test_each_plan_has_its_limits_and_nothing_beyond(account: Account, plan: str, limits: dict[str, int]) -> None:
    await account.subscribe(plan)
    for meter, included in limits.items():
        answer = await account.record(f"all_{meter}", meter, included, if_exceeded=REJECT)
        assert (answer.decision, answer.plan, answer.remaining) == (ALLOWED, plan, 0)
        check = await account.check(meter)
        assert (check.decision, check.reason) == (DENIED, EXHAUSTED)
        assert check.resets_at.ToDatetime(tzinfo=UTC) == JUNE


async def test_enterprise_is_unlimited(account: Account) -> None:
    await account.subscribe("enterprise")
    for meter in ("tokens", "api_calls", "scraping_tasks"):
        answer = await account.record(f"many_{meter}", meter, 10**12, if_exceeded=REJECT)
        assert (answer.decision, answer.unlimited) == (ALLOWED, True)
        assert (await account.check(meter, 10**12)).reason == PLAIN


async def test_usage_resets_on_the_first_whenever_the_subscription_began(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.subscribe("basic")
    first = await account.record("may", "scraping_tasks", 100)
    # The first period begins with the subscription, not with the month.
    assert first.period_start.ToDatetime(tzinfo=UTC) == START
    for month in (6, 7, 8):
        reset = datetime(2026, month, 1, tzinfo=UTC)
        service_clock.set(reset - timedelta(microseconds=1))
        assert (await account.check("scraping_tasks")).decision == DENIED
        service_clock.set(reset)
        check = await account.check("scraping_tasks", 100)
        assert (check.decision, check.used) == (ALLOWED, 0)
        assert check.period_start.ToDatetime(tzinfo=UTC) == reset
        await account.record(f"all_{month}", "scraping_tasks", 100)
    await books.assert_balanced(account.billing.engine)


async def test_the_subscription_s_own_month_resets_nothing(account: Account, service_clock: clocks.StillClock) -> None:
    subscription = await account.subscribe("basic")
    service_clock.set(JUNE)
    await account.record("june", "api_calls", 400)
    renewal = datetime(2026, 6, 11, 9, 30, tzinfo=UTC)
    service_clock.set(renewal)
    await account.tell(subscription.but(period=(renewal, datetime(2026, 7, 11, 9, 30, tzinfo=UTC))))
    assert (await account.check("api_calls")).used == 400
