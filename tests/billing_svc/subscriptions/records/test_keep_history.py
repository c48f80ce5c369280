"""When Stripe has opened a billing period out of turn, and how the times of a moved subscription are read."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from billing_svc.stripe import subscription_history, subscription_records
from billing_svc.subscriptions.records import keep_history


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


STORED = subscription_records.SubscriptionRecord(
    account_id="org_1",
    subscription_id="sub_1",
    customer_id="cus_1",
    status="active",
    is_plan=True,
    plan="pro",
    price="monthly",
    catalog_version=1,
    quantity=1,
    anchor=_at("2026-01-31"),
    billing_period_start=_at("2026-02-28"),
    billing_period_end=_at("2026-03-31"),
    trial_end=_at("2026-01-31"),
    cancel_at_period_end=False,
    cancel_at=None,
    ended_at=None,
    effective_from=_at("2026-01-21"),
    effective_until=None,
    checkout_id=None,
    superfluous=False,
    schedule_id=None,
)


@pytest.mark.parametrize(
    ("anchor", "period_start", "moved_at"),
    [
        ("2026-01-31", "2026-02-28", None),  # nothing new
        ("2026-01-31", "2026-03-31", None),  # a renewal
        ("2026-01-31", "2026-06-30", None),  # a renewal, after others that were missed
        ("2026-03-10", "2026-03-10", "2026-03-10"),  # the anchor was reset
        ("2026-03-10", "2026-05-10", "2026-03-10"),  # the same, noticed two renewals later
        ("2026-04-09", "2026-03-10", "2026-03-10"),  # a trial was added
        ("2026-01-31", "2026-03-10", "2026-03-10"),  # the same, with the anchor kept
        ("2026-04-09", "2026-02-28", None),  # a trial was extended, and its period only ends later
    ],
)
def test_a_period_that_is_not_the_next_one_is_a_move(anchor: str, period_start: str, moved_at: str | None) -> None:
    found = keep_history.moved_at(STORED, _at(anchor), _at(period_start))
    assert found == (None if moved_at is None else _at(moved_at))


def test_trials_are_intervals_and_usage_of_an_ended_period_belongs_before_the_move() -> None:
    moved_at = _at("2026-03-10")
    past = subscription_history.PastStretch(
        account_id="org_1",
        subscription_id="sub_1",
        since=STORED.effective_from,
        effective_until=moved_at,
        effective_from=STORED.effective_from,
        anchor=STORED.anchor,
        trial_end=STORED.trial_end,
        billing_period_start=STORED.billing_period_start,
        status="active",
        is_plan=True,
        plan="pro",
        catalog_version=1,
        quantity=1,
        overage_denied_from=None,
    )
    record = replace(STORED, moved_at=moved_at, trial_end=_at("2026-03-20"), past=(past,))
    expected = {"2026-01-20": False, "2026-01-21": True, "2026-01-31": False, "2026-03-09": False}
    expected |= {"2026-03-10": True, "2026-03-19": True, "2026-03-20": False}
    assert {day: record.was_trial(_at(day)) for day in expected} == expected
    assert (record.stretch_end(_at("2026-02-01")), record.stretch_end(moved_at)) == (moved_at, None)
    assert record.moved_between(_at("2026-03-09"), moved_at)
    assert not record.moved_between(moved_at, _at("2026-04-01"))
    second = subscription_records.SECOND
    before = _at("2026-02-28")
    assert record.billed_at(_at("2026-03-01"), before) == _at("2026-03-01")
    assert record.billed_at(moved_at + 5 * second, before) == moved_at - second
    assert record.billed_at(moved_at, moved_at) == moved_at
    metered_only = replace(record, is_plan=False)
    assert metered_only.billed_at(moved_at, before) == moved_at - second
    assert metered_only.billed_at(moved_at + second, before) == moved_at + second
