"""The decision through the real door, as plans change and time goes by."""

from datetime import datetime, timedelta

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from billing_svc.catalog import loading, versions
from tests.billing_svc import books
from tests.billing_svc.service import CATALOGS, Billing

ALLOWED, DENIED = decision_pb2.DECISION_ALLOWED, decision_pb2.DECISION_DENIED
EXHAUSTED = decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
OVERAGE = decision_pb2.DECISION_REASON_OVERAGE
SECOND = timedelta(seconds=1)


async def _check(billing: Billing, quantity: int = 1) -> quota_pb2.CheckQuotaResponse:
    return await billing.quota.CheckQuota(
        quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs", quantity=quantity)
    )


async def _record(
    billing: Billing, event_id: str, quantity: int = 1, occurred_at: datetime | None = None
) -> usage_pb2.RecordUsageResponse:
    event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter="runs", quantity=quantity)
    if occurred_at is not None:
        event.occurred_at.FromDatetime(occurred_at)
    return await billing.usage.RecordUsage(event)


async def _go_to_the_next_period(billing: Billing) -> datetime:
    """Move the clock to just after the present period's end, and return that end."""
    end = (await _check(billing)).period_end.ToDatetime(tzinfo=billing.clock.now().tzinfo)
    billing.clock.advance(end - billing.clock.now() + SECOND)
    return end


async def test_checks_consume_nothing_allowed_or_denied(billing: Billing) -> None:
    before = await books.contents(billing.engine)
    for quantity in (1, 5, 6, 10**12):
        check = await _check(billing, quantity)
        assert check.decision == (ALLOWED if quantity <= 5 else DENIED)
        assert (check.used, check.remaining, check.cost) == (0, 5, quantity)
    assert await books.contents(billing.engine) == before
    await _record(billing, "run_1", 3)
    before = await books.contents(billing.engine)
    for _ in range(3):
        assert (await _check(billing, 3)).reason == EXHAUSTED
        assert (await _check(billing, 2)).decision == ALLOWED
    assert await books.contents(billing.engine) == before


async def test_a_fact_is_counted_past_the_limit_and_says_so(billing: Billing) -> None:
    answer = await _record(billing, "run_1", 7)
    assert (answer.decision, answer.used, answer.remaining, answer.billable) == (ALLOWED, 7, 0, 0)
    assert answer.over_limit
    assert (await _check(billing)).decision == DENIED


async def test_a_bought_plan_counts_from_the_next_call_and_afresh(billing: Billing) -> None:
    await _record(billing, "run_1", 5)
    assert (await _check(billing)).decision == DENIED
    await books.subscribe(billing.engine, "org_1", "pro", since=billing.clock.now())
    check = await _check(billing)
    assert (check.decision, check.plan, check.used, check.included) == (ALLOWED, "pro", 0, 200)
    assert (await _record(billing, "run_2", 200)).remaining == 0
    check = await _check(billing, 3)
    assert (check.decision, check.reason) == (ALLOWED, OVERAGE)
    assert check.projected_overage_cost.amount == "1.50"
    assert (await _record(billing, "run_3", 3)).billable == 3


async def test_a_raised_limit_of_the_default_plan_counts_from_the_next_call(billing: Billing) -> None:
    await _record(billing, "run_1", 5)
    assert (await _check(billing)).decision == DENIED
    file = (CATALOGS / "nyqst.yaml").read_text().replace("included: 5,", "included: 50,")
    raised = loading.load_text(file, "raised.yaml")
    await billing.transactions.run(lambda conn: versions.publish(conn, raised, "operator:test", billing.clock.now()))
    check = await _check(billing)
    assert (check.decision, check.used, check.included, check.remaining) == (ALLOWED, 5, 50, 45)


async def test_a_sold_plan_keeps_the_version_that_it_was_sold_under(billing: Billing) -> None:
    await books.subscribe(billing.engine, "org_1", "pro", since=billing.clock.now())
    file = (CATALOGS / "nyqst.yaml").read_text().replace("included: 200,", "included: 20,")
    lowered = loading.load_text(file, "lowered.yaml")
    await billing.transactions.run(lambda conn: versions.publish(conn, lowered, "operator:test", billing.clock.now()))
    check = await _check(billing)
    assert (check.included, check.catalog_version) == (200, 1)


async def test_the_quota_resets_by_the_clock_alone(billing: Billing) -> None:
    """Promise 8: no renewal event has come, and none is waited for."""
    await _record(billing, "run_1", 5)
    assert (await _check(billing)).decision == DENIED
    end = await _go_to_the_next_period(billing)
    check = await _check(billing)
    assert (check.decision, check.used, check.period_start.ToDatetime(tzinfo=end.tzinfo)) == (ALLOWED, 0, end)
    assert (await _record(billing, "run_2")).used == 1


async def test_a_subscription_s_quota_resets_by_the_clock_alone(billing: Billing) -> None:
    await books.subscribe(billing.engine, "org_1", "pro", since=billing.clock.now() - timedelta(days=400))
    for month in range(14):
        assert (await _record(billing, f"run_{month}", 150)).used == 150
        end = await _go_to_the_next_period(billing)
        check = await _check(billing)
        assert (check.used, check.plan, check.remaining) == (0, "pro", 200)
        assert check.period_start.ToDatetime(tzinfo=end.tzinfo) == end
    await books.assert_balanced(billing.engine)


async def test_a_plan_ends_when_it_is_to_end_without_an_event(billing: Billing) -> None:
    now = billing.clock.now()
    await books.subscribe(billing.engine, "org_1", "pro", since=now, until=now + timedelta(days=3))
    await _record(billing, "run_1", 100)
    billing.clock.advance(timedelta(days=3))
    check = await _check(billing)
    assert (check.plan, check.used, check.included) == ("free", 0, 5)


async def test_a_late_event_counts_in_its_period_for_half_an_hour(billing: Billing) -> None:
    await _record(billing, "run_1", 2)
    end = await _go_to_the_next_period(billing)
    billing.clock.advance(timedelta(minutes=29))
    late = await _record(billing, "late", 2, end - SECOND)
    assert (late.used, late.period_end.ToDatetime(tzinfo=end.tzinfo)) == (4, end)
    assert (await _check(billing)).used == 0
    billing.clock.advance(timedelta(minutes=1))
    too_late = await _record(billing, "too_late", 2, end - SECOND)
    assert (too_late.used, too_late.period_start.ToDatetime(tzinfo=end.tzinfo)) == (2, end)
    assert (await _check(billing)).used == 2
    await books.assert_balanced(billing.engine)


async def test_a_late_event_counts_under_the_terms_kept_on_its_counter(billing: Billing) -> None:
    """The plan's limits were raised meanwhile; the past period is closed to that."""
    await _record(billing, "run_1", 4)
    end = await _go_to_the_next_period(billing)
    file = (CATALOGS / "nyqst.yaml").read_text().replace("included: 5,", "included: 50,")
    raised = loading.load_text(file, "raised.yaml")
    await billing.transactions.run(lambda conn: versions.publish(conn, raised, "operator:test", billing.clock.now()))
    late = await _record(billing, "late", 1, end - SECOND)
    assert (late.used, late.included, late.remaining, late.catalog_version) == (5, 5, 0, 1)
    assert (await _record(billing, "now")).included == 50


async def test_the_instant_of_the_end_belongs_to_the_next_period(billing: Billing) -> None:
    end = await _go_to_the_next_period(billing)
    first = await _record(billing, "first", 1, end)
    assert first.period_start.ToDatetime(tzinfo=end.tzinfo) == end
    last = await _record(billing, "last", 1, end - timedelta(microseconds=1))
    assert last.period_end.ToDatetime(tzinfo=end.tzinfo) == end


async def test_an_event_slightly_ahead_counts_in_the_period_to_come(billing: Billing) -> None:
    end = (await _check(billing)).period_end.ToDatetime(tzinfo=billing.clock.now().tzinfo)
    billing.clock.advance(end - billing.clock.now() - timedelta(minutes=1))
    ahead = await _record(billing, "ahead", 1, end + SECOND)
    assert ahead.period_start.ToDatetime(tzinfo=end.tzinfo) == end
    assert (await _check(billing)).used == 0
    billing.clock.advance(timedelta(minutes=2))
    assert (await _check(billing)).used == 1
