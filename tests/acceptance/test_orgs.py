"""Organisations with seats: included units scale with the quantity, and a decrease counts at once."""

from datetime import UTC, datetime, timedelta

import pytest

from billing.v1 import subscription_pb2
from tests import clocks
from tests.acceptance.accounts import (
    ALLOWED,
    DENIED,
    EXHAUSTED,
    GRACE,
    GRACE_EXPIRED,
    PLAIN,
    REJECT,
    SOFT_LIMIT,
    START,
    Account,
)


@pytest.mark.parametrize(("plan", "exports"), [("starter", 50), ("team", 200), ("business", 1000)])
async def test_members_and_exports_scale_with_the_seats(account: Account, plan: str, exports: int) -> None:
    await account.subscribe(plan, quantity=7)
    assert (await account.check("members")).included == 7
    assert (await account.check("exports")).included == 7 * exports
    assert (await account.record("seven", "members", level=7, if_exceeded=REJECT)).decision == ALLOWED
    eighth = await account.check("members")
    assert (eighth.decision, eighth.reason, eighth.used) == (DENIED, EXHAUSTED, 7)
    # A gauge is not reset by a period.
    assert not eighth.HasField("resets_at")


async def test_what_is_not_per_seat_does_not_scale(account: Account) -> None:
    await account.subscribe("starter", quantity=7)
    assert (await account.check("projects")).included == 10


async def test_a_change_of_seats_counts_from_the_next_call_on(account: Account) -> None:
    subscription = await account.subscribe("team", quantity=3)
    await account.record("three", "members", level=3)
    assert (await account.check("members")).decision == DENIED
    await account.tell(subscription.but(quantity=5))
    assert (await account.record("fourth", "members", 1, if_exceeded=REJECT)).used == 4
    await account.tell(subscription.but(quantity=2))
    denied = await account.check("members")
    assert (denied.decision, denied.used, denied.included, denied.remaining) == (DENIED, 4, 2, 0)
    # Members leave until the limit allows another member.
    assert (await account.record("leave", "members", -3)).used == 1
    assert (await account.check("members")).decision == ALLOWED
    assert (await account.check("members", 2)).decision == DENIED


async def test_more_seats_in_mid_period_keep_what_was_used(account: Account) -> None:
    subscription = await account.subscribe("starter", quantity=1)
    await account.record("exports", "exports", 60)
    await account.tell(subscription.but(quantity=2))
    check = await account.check("exports", 40)
    assert (check.decision, check.reason, check.used, check.included, check.remaining) == (ALLOWED, PLAIN, 60, 100, 40)


async def test_exports_past_the_limit_are_allowed_for_seven_days(
    account: Account, service_clock: clocks.StillClock
) -> None:
    subscription = await account.subscribe("starter", quantity=1)
    await account.record("fifty", "exports", 50)
    await account.record("crossing", "exports")
    service_clock.set(START + timedelta(days=7) - timedelta(microseconds=1))
    check = await account.check("exports")
    assert (check.decision, check.reason) == (ALLOWED, GRACE)
    service_clock.set(START + timedelta(days=7))
    assert (await account.check("exports")).reason == GRACE_EXPIRED
    # A bigger plan ends the excess and its grace; the next time over the limit begins a new grace.
    await account.tell(subscription.but(quantity=2))
    assert (await account.check("exports", 49)).reason == PLAIN
    await account.record("again", "exports", 50)
    check = await account.check("exports")
    assert (check.decision, check.reason) == (ALLOWED, GRACE)
    assert check.grace_ends_at.ToDatetime(tzinfo=UTC) == START + timedelta(days=14)


async def test_business_exports_are_never_stopped(account: Account) -> None:
    await account.subscribe("business", quantity=2)
    answer = await account.record("many", "exports", 2500, if_exceeded=REJECT)
    assert (answer.decision, answer.reason, answer.billable) == (ALLOWED, SOFT_LIMIT, 0)
    assert (await account.check("exports")).reason == SOFT_LIMIT


async def test_business_projects_are_unlimited(account: Account) -> None:
    await account.subscribe("business")
    assert (await account.record("many", "projects", level=10**6, if_exceeded=REJECT)).unlimited


async def test_a_trial_gives_the_plan_and_its_months_are_counted_from_its_end(
    account: Account, service_clock: clocks.StillClock
) -> None:
    trial_end = START + timedelta(days=14)
    subscription = await account.subscribe("team", status="trialing", anchor=trial_end, period=(START, trial_end))
    check = await account.check("exports")
    assert (check.plan, check.included) == ("team", 200)
    assert check.period_end.ToDatetime(tzinfo=UTC) == trial_end
    await account.record("trial", "exports", 150)
    service_clock.set(trial_end)
    await account.tell(subscription.but(status="active", period=(trial_end, trial_end + timedelta(days=31))))
    check = await account.check("exports")
    assert (check.used, check.period_start.ToDatetime(tzinfo=UTC)) == (0, trial_end)


async def test_a_trial_without_a_payment_method_ends_in_the_default_plan(
    account: Account, service_clock: clocks.StillClock
) -> None:
    subscription = await account.subscribe("team", status="trialing", anchor=START + timedelta(days=14))
    service_clock.advance(timedelta(days=14))
    await account.tell(subscription.but(status="paused"))
    assert (await account.check("exports")).plan == "solo"


async def test_a_yearly_price_has_monthly_quotas(account: Account, service_clock: clocks.StillClock) -> None:
    await account.subscribe("team", price="yearly", period=(START, START.replace(year=2027)))
    await account.record("exports", "exports", 200)
    assert (await account.check("exports")).period_end.ToDatetime(tzinfo=UTC) == START.replace(month=6)
    service_clock.set(START.replace(month=6))
    assert (await account.check("exports")).used == 0


async def test_without_a_subscription_months_are_counted_from_the_signup(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.record("first", "exports", 10)
    service_clock.set(datetime(2026, 6, 11, 9, 29, 59, 999_999, tzinfo=UTC))
    assert (await account.check("exports")).decision == DENIED
    service_clock.set(datetime(2026, 6, 11, 9, 30, tzinfo=UTC))
    assert (await account.check("exports")).decision == ALLOWED


async def test_plans_are_listed_with_their_prices_by_the_seat(account: Account) -> None:
    plans = (await account.billing.subscriptions.ListPlans(subscription_pb2.ListPlansRequest())).plans
    shown = {plan.plan: [(price.price, price.amount.amount, price.per_seat) for price in plan.prices] for plan in plans}
    assert shown["team"] == [("monthly", "15.00", True), ("yearly", "150.00", True)]
    assert [plan.plan for plan in plans if plan.trial_days == 14] == ["starter", "team"]
