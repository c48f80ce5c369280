from datetime import UTC, datetime, timedelta

import pytest

from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import rules

START = datetime(2026, 1, 31, tzinfo=UTC)
PERIOD_END = datetime(2026, 2, 28, tzinfo=UTC)
EARLIER = datetime(2026, 2, 5, tzinfo=UTC)
NOW = datetime(2026, 2, 10, tzinfo=UTC)
LATER = datetime(2026, 2, 20, tzinfo=UTC)

GAVE = rules.Interval(START, None)
ENDED_EARLIER = rules.Interval(START, EARLIER)
ENDS_LATER = rules.Interval(START, LATER)
NEVER = rules.Interval(START, START)


def subscription(status: str, **more: object) -> stripe_subscriptions.StripeSubscription:
    fields: dict[str, object] = {
        "subscription_id": "sub_1",
        "customer_id": "cus_1",
        "status": status,
        "items": (),
        "metadata": {},
        "anchor": START,
        "start_date": START,
        "trial_end": None,
        "cancel_at_period_end": False,
        "cancel_at": None,
        "canceled_at": None,
        "ended_at": None,
    }
    return stripe_subscriptions.StripeSubscription(**{**fields, **more})  # type: ignore[arg-type]  # a table of fields


@pytest.mark.parametrize("previous", [None, GAVE, ENDED_EARLIER, ENDS_LATER, NEVER])
@pytest.mark.parametrize("status", sorted(stripe_subscriptions.GIVING))
def test_a_status_that_gives_the_plan_gives_it_whatever_went_before(
    status: str, previous: rules.Interval | None
) -> None:
    assert rules.interval_in_force(subscription(status), previous, PERIOD_END, NOW) == GAVE
    at_period_end = subscription(status, cancel_at_period_end=True)
    assert rules.interval_in_force(at_period_end, previous, PERIOD_END, NOW).end == PERIOD_END
    assert rules.interval_in_force(subscription(status, cancel_at=LATER), previous, PERIOD_END, NOW).end == LATER
    both = subscription(status, cancel_at_period_end=True, cancel_at=LATER)
    assert rules.interval_in_force(both, previous, PERIOD_END, NOW).end == LATER


@pytest.mark.parametrize(
    ("status", "previous", "end"),
    [
        # Stripe does not say since when, so a suspension begins when it is first seen, and keeps that beginning.
        ("unpaid", None, NOW),
        ("unpaid", GAVE, NOW),
        ("unpaid", ENDED_EARLIER, EARLIER),
        ("unpaid", ENDS_LATER, NOW),
        ("unpaid", NEVER, START),
        ("paused", GAVE, NOW),
        ("paused", ENDED_EARLIER, EARLIER),
        ("incomplete", None, START),
        ("incomplete", GAVE, START),
        ("incomplete_expired", None, START),
        ("incomplete_expired", NEVER, START),
        ("gone_fishing", None, START),
        ("gone_fishing", GAVE, None),
        ("gone_fishing", ENDED_EARLIER, EARLIER),
        ("gone_fishing", ENDS_LATER, LATER),
    ],
)
def test_a_status_that_gives_no_plan_ends_the_interval(
    status: str, previous: rules.Interval | None, end: datetime | None
) -> None:
    assert rules.interval_in_force(subscription(status), previous, PERIOD_END, NOW) == rules.Interval(START, end)


@pytest.mark.parametrize(
    ("fields", "previous", "end"),
    [
        ({"ended_at": EARLIER}, None, EARLIER),
        ({"ended_at": EARLIER}, GAVE, EARLIER),
        ({"ended_at": EARLIER}, ENDS_LATER, EARLIER),
        ({"ended_at": NOW}, ENDED_EARLIER, EARLIER),  # suspended before
        ({"ended_at": NOW}, NEVER, START),
        ({"ended_at": NOW, "canceled_at": EARLIER}, GAVE, NOW),  # requested earlier, ended now
        ({"canceled_at": EARLIER}, GAVE, EARLIER),
        ({}, GAVE, NOW),
        ({"ended_at": START - timedelta(days=1)}, GAVE, START),
    ],
)
def test_a_canceled_subscription_gave_its_plan_until_it_ended(
    fields: dict[str, object], previous: rules.Interval | None, end: datetime
) -> None:
    interval = rules.interval_in_force(subscription("canceled", **fields), previous, PERIOD_END, NOW)
    assert interval == rules.Interval(START, end)


STAMPS = {"start_date": 1_790_000_000, "billing_cycle_anchor": 1_790_000_000}
PERIOD = {"current_period_start": 1_790_000_000, "current_period_end": 1_792_000_000}


def data(**more: object) -> dict[str, object]:
    item = {"id": "si_1", "price": {"id": "price_1"}, "quantity": 3, **PERIOD}
    return {"id": "sub_1", "customer": "cus_1", "status": "active", "items": {"data": [item]}, **STAMPS, **more}


@pytest.mark.parametrize(
    ("on_item", "on_subscription"),
    [(PERIOD, {}), ({}, PERIOD), (PERIOD, {"current_period_start": 1, "current_period_end": 2})],
)
def test_the_period_is_the_item_s_and_else_the_subscription_s(
    on_item: dict[str, int], on_subscription: dict[str, int]
) -> None:
    item = {"id": "si_1", "price": "price_1", **on_item}
    read = stripe_subscriptions.from_stripe(data(items={"data": [item]}, **on_subscription)).items[0]
    bounds = (read.period_start, read.period_end)
    assert tuple(int(bound.timestamp()) for bound in bounds) == (1_790_000_000, 1_792_000_000)


def test_customer_and_price_may_be_ids_or_objects() -> None:
    assert stripe_subscriptions.from_stripe(data(customer={"id": "cus_1", "object": "customer"})).customer_id == "cus_1"
    assert stripe_subscriptions.from_stripe(data()).items[0].price_id == "price_1"
    older = {"id": "si_1", "plan": {"id": "price_1"}, **PERIOD}
    assert stripe_subscriptions.from_stripe(data(items={"data": [older]})).items[0].price_id == "price_1"


@pytest.mark.parametrize(("quantity", "seats"), [(None, 1), (0, 0), (1, 1), (7, 7)])
def test_a_metered_item_counts_as_one_and_zero_stays_zero(quantity: int | None, seats: int) -> None:
    item = {"id": "si_1", "price": "price_1", "quantity": quantity, **PERIOD}
    assert stripe_subscriptions.from_stripe(data(items={"data": [item]})).items[0].quantity == seats


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": None},
        {"id": "sub_\0"},
        {"status": 7},
        {"customer": None},
        {"customer": {"id": 5}},
        {"customer": "cus_\ud800"},
        {"items": None},
        {"items": {"data": [None]}},
        {"items": {"data": [{"id": "si_1", "price": "price_1"}]}},
        {"items": {"data": [{"id": "si_1", "price": "price_1", "quantity": 10**40, **PERIOD}]}},
        {"items": {"data": [{"id": "si_1", "price": "price_1", "quantity": "3", **PERIOD}]}},
        {"billing_cycle_anchor": 10**30},
        {"billing_cycle_anchor": "soon"},
        {"cancel_at": 10**15},
        {"metadata": "none"},
    ],
    ids=repr,
)
def test_what_is_no_subscription_is_a_value_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not a subscription|out of range|year"):
        stripe_subscriptions.from_stripe(data(**wrong))
