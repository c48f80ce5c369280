"""Research runs and reports: 5 and 2 a month, denied beyond; or 200 runs for $20 and $0.50 for each more."""

from datetime import UTC, datetime, timedelta

import pytest

from billing.v1 import usage_pb2
from tests import clocks
from tests.acceptance.accounts import (
    ALLOWED,
    DENIED,
    EXHAUSTED,
    OVERAGE,
    PLAIN,
    REJECT,
    START,
    Account,
    publish,
)
from tests.billing_svc import books
from tests.billing_svc.service import CATALOGS

# A larger plan than pro, for upgrades.
SCALE = """\
  scale:
    name: Scale
    prices:
      monthly: {amount: "80.00", interval: month}
    limits:
      runs: {included: 1000, beyond: charge, unit_price: "0.40"}
      reports: {included: unlimited}
"""
PERIOD_END = datetime(2026, 6, 11, 9, 30, tzinfo=UTC)


async def test_free_gives_five_runs_and_two_reports_and_not_one_more(account: Account) -> None:
    for n in range(5):
        answer = await account.record(f"run_{n}", "runs", if_exceeded=REJECT)
        assert (answer.decision, answer.used, answer.remaining) == (ALLOWED, n + 1, 4 - n)
    for n in range(2):
        assert (await account.record(f"report_{n}", "reports", if_exceeded=REJECT)).decision == ALLOWED
    for meter in ("runs", "reports"):
        check = await account.check(meter)
        assert (check.decision, check.reason, list(check.upgrade_plans)) == (DENIED, EXHAUSTED, ["pro"])
        assert check.resets_at.ToDatetime(tzinfo=UTC) == datetime(2026, 6, 1, tzinfo=UTC)
        assert (await account.record("beyond", meter, if_exceeded=REJECT)).decision == DENIED
    assert (await books.event_count(account.billing.engine, "org_1")) == 7


async def test_a_run_with_three_retries_counts_once(account: Account) -> None:
    """With the run's id as event_id, and with different event ids and retry_attempt."""
    first = await account.record("run_1", "runs")
    assert (first.used, first.cost, first.duplicate) == (1, 1, False)
    for _ in range(3):
        again = await account.record("run_1", "runs")
        assert (again.used, again.cost, again.duplicate) == (1, 1, True)
    await account.record("run_2", "runs")
    for attempt in (1, 2, 3):
        retry = await account.record(f"run_2.{attempt}", "runs", retry_attempt=attempt)
        assert (retry.used, retry.cost, retry.decision) == (2, 0, ALLOWED)
    assert (await account.check("runs")).used == 2


async def test_a_retry_is_never_denied(account: Account) -> None:
    await account.record("run_1", "runs", 5)
    assert (await account.record("run_2", "runs", if_exceeded=REJECT)).decision == DENIED
    retry = await account.record("run_1.1", "runs", 5, retry_attempt=1, if_exceeded=REJECT)
    assert (retry.decision, retry.cost, retry.used) == (ALLOWED, 0, 5)


async def test_pro_charges_half_a_dollar_for_each_run_past_two_hundred(account: Account) -> None:
    await account.subscribe("pro")
    await account.record("runs", "runs", 199)
    last_free = await account.check("runs")
    assert (last_free.decision, last_free.reason, last_free.remaining) == (ALLOWED, PLAIN, 1)
    across = await account.check("runs", 2)
    assert (across.decision, across.reason, across.projected_overage_cost.amount) == (ALLOWED, OVERAGE, "0.50")
    answer = await account.record("more", "runs", 3)
    assert (answer.used, answer.billable, answer.reason) == (202, 2, OVERAGE)
    usage = (await account.usage("runs"))["runs"]
    assert (usage.billable, usage.projected_overage_cost.amount, usage.percent) == (2, "1.00", 101)


async def test_reports_are_unlimited_on_pro(account: Account) -> None:
    await account.subscribe("pro")
    answer = await account.record("many", "reports", 10**9, if_exceeded=REJECT)
    assert (answer.decision, answer.unlimited, answer.billable) == (ALLOWED, True, 0)
    check = await account.check("reports", 10**9)
    assert (check.decision, check.reason, check.unlimited) == (ALLOWED, PLAIN, True)


async def test_a_bigger_plan_frees_what_was_charged_already(account: Account) -> None:
    """260 of 200 runs, 60 of them charged: an upgrade to 1,000 leaves 800 free in the same period."""
    await publish(account.billing, (CATALOGS / "nyqst.yaml").read_text() + SCALE)
    subscription = await account.subscribe("pro")
    before = await account.record("runs", "runs", 260)
    assert (before.used, before.billable, before.included) == (260, 60, 200)
    await account.tell(subscription.but(plan="scale"))
    check = await account.check("runs")
    assert (check.plan, check.used, check.included, check.overage) == ("scale", 260, 1000, 60)
    assert (check.remaining, check.reason) == (800, PLAIN)
    rest = await account.record("rest", "runs", 800)
    assert (rest.used, rest.billable, rest.remaining, rest.reason) == (1060, 0, 0, PLAIN)
    beyond = await account.record("beyond", "runs")
    assert (beyond.used, beyond.billable, beyond.reason) == (1061, 1, OVERAGE)
    assert (await account.usage("runs"))["runs"].billable == 61
    await books.assert_balanced(account.billing.engine)


async def test_subscribing_counts_from_the_next_call_on(account: Account) -> None:
    """Usage on free neither blocks nor reduces the included units that were bought."""
    await account.record("runs", "runs", 5)
    assert (await account.check("runs")).decision == DENIED
    await account.subscribe("pro")
    check = await account.check("runs", 200)
    assert (check.plan, check.decision, check.reason, check.used) == ("pro", ALLOWED, PLAIN, 0)


@pytest.mark.parametrize(
    ("anchor", "ends"),
    [
        (datetime(2026, 1, 31, 8, tzinfo=UTC), [(2, 28), (3, 31), (4, 30), (5, 31), (6, 30)]),
        (datetime(2026, 5, 11, 9, 30, tzinfo=UTC), [(6, 11), (7, 11), (8, 11)]),
    ],
)
async def test_months_are_counted_from_the_anchor(
    account: Account, service_clock: clocks.StillClock, anchor: datetime, ends: list[tuple[int, int]]
) -> None:
    """Exact to the microsecond, and without Stripe's renewal events: none arrives in this test."""
    service_clock.set(anchor)
    await account.subscribe("pro")
    for n, (month, day) in enumerate(ends):
        end = anchor.replace(month=month, day=day)
        service_clock.set(end - timedelta(microseconds=1))
        assert (await account.record(f"runs_{n}", "runs", 7)).used == 7
        service_clock.set(end)
        check = await account.check("runs")
        assert (check.used, check.period_start.ToDatetime(tzinfo=UTC)) == (0, end)


async def test_a_renewal_told_three_days_late_changes_nothing(
    account: Account, service_clock: clocks.StillClock
) -> None:
    subscription = await account.subscribe("pro")
    await account.record("old", "runs", 260)
    service_clock.set(PERIOD_END)
    reset = await account.check("runs")
    assert (reset.used, reset.remaining, reset.decision) == (0, 200, ALLOWED)
    await account.record("new", "runs", 30)
    service_clock.advance(timedelta(days=3))
    before = await books.contents(account.billing.engine)
    await account.tell(subscription.but(period=(PERIOD_END, datetime(2026, 7, 11, 9, 30, tzinfo=UTC))))
    after = await books.contents(account.billing.engine)
    assert {name for name in before if before[name] != after[name]} == {"subscriptions", "audit_log"}
    check = await account.check("runs")
    assert (check.used, check.remaining, check.overage) == (30, 170, 0)
    assert check.period_start.ToDatetime(tzinfo=UTC) == PERIOD_END


async def test_a_subscription_that_ends_gives_its_plan_until_then_and_no_longer(
    account: Account, service_clock: clocks.StillClock
) -> None:
    """Also if Stripe's event of the end never arrives."""
    subscription = await account.subscribe("pro")
    await account.record("runs", "runs", 50)
    await account.tell(subscription.but(cancel_at=PERIOD_END))
    service_clock.set(PERIOD_END - timedelta(microseconds=1))
    assert (await account.check("runs")).plan == "pro"
    service_clock.set(PERIOD_END)
    check = await account.check("runs", 5)
    assert (check.plan, check.decision, check.used, check.included) == ("free", ALLOWED, 0, 5)
    assert check.period_start.ToDatetime(tzinfo=UTC) == PERIOD_END
    assert (await account.check("runs", 6)).decision == DENIED


async def test_past_due_keeps_the_plan_and_unpaid_gives_the_default_one(account: Account) -> None:
    subscription = await account.subscribe("pro")
    for status, plan, past_due in [
        ("past_due", "pro", True),
        ("unpaid", "free", False),
        ("active", "pro", False),
        ("paused", "free", False),
        ("trialing", "pro", False),
        ("a status of next year", "pro", False),
    ]:
        await account.tell(subscription.but(status=status))
        check = await account.check("runs")
        assert (check.plan, check.past_due) == (plan, past_due), status


async def test_a_late_event_counts_in_its_period_for_half_an_hour(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await account.subscribe("pro")
    await account.record("in_time", "runs", 199)
    happened = PERIOD_END - timedelta(seconds=1)
    service_clock.set(PERIOD_END + timedelta(minutes=30) - timedelta(microseconds=1))
    late = await account.record("late", "runs", 3, occurred_at=happened)
    assert (late.used, late.billable, late.period_start.ToDatetime(tzinfo=UTC)) == (202, 2, START)
    assert (await account.check("runs")).used == 0
    service_clock.advance(timedelta(microseconds=1))
    later = await account.record("later", "runs", 3, occurred_at=happened)
    assert (later.used, later.billable, later.period_start.ToDatetime(tzinfo=UTC)) == (3, 0, PERIOD_END)
    # A repeat of the late event after its period is closed gets the first answer.
    service_clock.advance(timedelta(days=1))
    again = await account.record("late", "runs", 3, occurred_at=happened)
    assert (again.duplicate, again.used, again.billable) == (True, 202, 2)
    await books.assert_balanced(account.billing.engine)


async def test_a_late_event_is_counted_under_the_terms_that_its_period_ended_with(
    account: Account, service_clock: clocks.StillClock
) -> None:
    """Not under the terms when it arrives: the subscription is over by then."""
    subscription = await account.subscribe("pro")
    await account.record("runs", "runs", 200)
    service_clock.advance(timedelta(days=3))
    over = service_clock.now()
    await account.tell(subscription.but(status="canceled", ended_at=over))
    assert (await account.check("runs")).plan == "free"
    late = await account.record("late", "runs", 2, occurred_at=over - timedelta(seconds=1))
    assert (late.plan, late.used, late.billable, late.reason) == ("pro", 202, 2, OVERAGE)
    assert late.period_end.ToDatetime(tzinfo=UTC) == over
    assert (await account.check("runs")).used == 0
    await books.assert_balanced(account.billing.engine)


async def test_a_plan_that_was_changed_after_the_period_s_end_does_not_reach_back_into_it(
    account: Account, service_clock: clocks.StillClock
) -> None:
    await publish(account.billing, (CATALOGS / "nyqst.yaml").read_text() + SCALE)
    subscription = await account.subscribe("pro")
    await account.record("runs", "runs", 200)
    service_clock.set(PERIOD_END + timedelta(minutes=1))
    await account.tell(subscription.but(plan="scale"))
    late = await account.record("late", "runs", 2, occurred_at=PERIOD_END - timedelta(minutes=1))
    assert (late.plan, late.used, late.included, late.billable) == ("pro", 202, 200, 2)
    now = await account.record("now", "runs", 2)
    assert (now.plan, now.used, now.included, now.billable) == ("scale", 2, 1000, 0)


async def test_an_early_event_counts_in_the_period_that_it_says(
    account: Account, service_clock: clocks.StillClock
) -> None:
    """A caller's clock may be five minutes ahead, also across the end of a period."""
    await account.subscribe("pro")
    service_clock.set(PERIOD_END - timedelta(minutes=5))
    await account.record("now", "runs", 10)
    early = await account.record("early", "runs", 4, occurred_at=PERIOD_END)
    assert (early.used, early.period_start.ToDatetime(tzinfo=UTC)) == (4, PERIOD_END)
    assert (await account.check("runs")).used == 10
    service_clock.set(PERIOD_END)
    assert (await account.check("runs")).used == 4
    await books.assert_balanced(account.billing.engine)


async def test_a_voided_run_is_free_again_and_is_not_charged(account: Account) -> None:
    await account.subscribe("pro")
    await account.record("many", "runs", 199)
    await account.record("run_1", "runs", 3)
    voided = await account.correct("void_1", "run_1")
    assert (voided.quantity, voided.billable_quantity, voided.left) == (3, 2, 0)
    assert (voided.used, voided.billable) == (199, 0)
    check = await account.check("runs")
    assert (check.used, check.remaining, check.overage, check.reason) == (199, 1, 0, PLAIN)
    again = await account.correct("void_1", "run_1")
    assert (again.duplicate, again.used, again.billable) == (True, 199, 0)
    # The voided event's id stays used.
    assert (await account.record("run_1", "runs", 3)).duplicate
    await books.assert_balanced(account.billing.engine)


async def test_a_correction_takes_back_what_was_charged_first_whichever_event_it_names(account: Account) -> None:
    await account.subscribe("pro")
    await account.record("early", "runs", 200)
    await account.record("late", "runs", 50)
    corrected = await account.correct("fix", "early", 80)
    assert (corrected.billable_quantity, corrected.used, corrected.billable) == (50, 170, 0)
    assert (await account.check("runs")).remaining == 30
    await books.assert_balanced(account.billing.engine)


async def test_a_correction_of_a_past_period_stays_there(account: Account, service_clock: clocks.StillClock) -> None:
    await account.subscribe("pro")
    await account.record("old", "runs", 210)
    service_clock.advance(timedelta(days=40))
    await account.record("new", "runs", 10)
    corrected = await account.correct("fix", "old", 20)
    assert (corrected.used, corrected.billable, corrected.billable_quantity) == (190, 0, 10)
    assert corrected.period_start.ToDatetime(tzinfo=UTC) == START
    assert (await account.check("runs")).used == 10
    await books.assert_balanced(account.billing.engine)


async def test_a_batch_counts_in_its_order_from_the_account_s_first_event_on(account: Account) -> None:
    """The same as if each event were recorded alone: a denied event's answer includes the events before it."""
    quantities = [3, 6, 2, 1]
    events = [
        usage_pb2.RecordUsageRequest(
            account_id="org_1", event_id=f"run_{n}", meter="runs", quantity=quantity, if_exceeded=REJECT
        )
        for n, quantity in enumerate(quantities)
    ]
    batch = await account.billing.usage.BatchRecordUsage(usage_pb2.BatchRecordUsageRequest(events=events))
    answers = [(result.answer.decision, result.answer.used) for result in batch.results]
    assert answers == [(ALLOWED, 3), (DENIED, 3), (ALLOWED, 5), (DENIED, 5)]


async def test_a_denied_call_writes_nothing(account: Account) -> None:
    before = await books.contents(account.billing.engine)
    assert (await account.record("run_1", "runs", 6, if_exceeded=REJECT)).decision == DENIED
    assert (await account.check("runs", 6)).decision == DENIED
    assert await books.contents(account.billing.engine) == before
