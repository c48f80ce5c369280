from datetime import UTC, datetime, timedelta

import pytest

from billing_svc.platform import errors
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


KEEP = rules.PausePolicy(keeps_while_collection_paused=True, keeps_while_paused=True)
DEFAULT = rules.PausePolicy(keeps_while_collection_paused=False, keeps_while_paused=False)


@pytest.mark.parametrize("policy", [KEEP, DEFAULT])
@pytest.mark.parametrize(
    "fields", [{"status": "paused"}, {"status": "active", "collection_pause": "void"}], ids=["paused", "collection"]
)
def test_the_catalog_says_whether_a_pause_takes_the_plan(policy: rules.PausePolicy, fields: dict[str, object]) -> None:
    paused = subscription(**{"status": "", **fields})  # type: ignore[arg-type]  # a table of fields
    found = rules.interval_in_force(paused, GAVE, PERIOD_END, NOW, policy)
    assert found == (GAVE if policy is KEEP else rules.Interval(START, NOW))
    # Seen again later, a suspension keeps its beginning; what is resumed gives its plan again.
    assert rules.interval_in_force(paused, found, PERIOD_END, LATER, policy) == found
    assert rules.interval_in_force(subscription("active"), found, PERIOD_END, LATER, policy) == GAVE


def test_a_pause_never_keeps_what_is_unpaid_or_over() -> None:
    for status in ("unpaid", "canceled", "incomplete"):
        found = rules.interval_in_force(subscription(status, collection_pause="void"), GAVE, PERIOD_END, NOW, KEEP)
        assert found.end is not None


def test_overage_is_denied_from_the_pause_on() -> None:
    paused = subscription("active", collection_pause="keep_as_draft")
    assert rules.overage_denied_from(paused, None, NOW) == NOW
    assert rules.overage_denied_from(paused, EARLIER, NOW) == EARLIER
    assert rules.overage_denied_from(subscription("active"), EARLIER, NOW) is None
    assert rules.overage_denied_from(subscription("paused", pause_began_at=EARLIER), None, NOW) == EARLIER
    assert rules.overage_denied_from(subscription("canceled", collection_pause="void"), None, NOW) is None


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
        {"metadata": {"checkout_id": "a\0"}},
        {"billing_cycle_anchor": True},
        {"cancel_at_period_end": "no"},
        {"items": {"data": [{"id": "si_1", "price": "price_1", "quantity": True, **PERIOD}]}},
        {"pause_collection": {"behavior": None}},
        {"schedule": {"id": "sub_sched_1", "current_phase": 5}},
    ],
    ids=repr,
)
def test_what_cannot_be_read_is_refused_with_object_and_field(wrong: dict[str, object]) -> None:
    with pytest.raises(errors.StripeObjectUnreadable) as caught:
        stripe_subscriptions.from_stripe(data(**wrong))
    (field,) = wrong
    about = caught.value.metadata["object"]
    assert about in {"subscription sub_1", "subscription without an id", "subscription schedule sub_sched_1"}
    assert caught.value.message.startswith(f"{about}: {caught.value.metadata['field']} is ")
    assert field == "schedule" or caught.value.metadata["field"].startswith(field)


def test_what_needs_no_price_is_read_whatever_else_is_wrong() -> None:
    wrong = data(items=None, metadata="none", billing_cycle_anchor="soon", cancel_at=10**15, status="canceled")
    standing = stripe_subscriptions.standing({**wrong, "ended_at": 1_790_000_000, "pause_collection": {"behavior": 7}})
    assert (standing.status, standing.cancel_at, standing.collection_pause) == ("canceled", None, "unknown")
    assert standing.ended_at == datetime.fromtimestamp(1_790_000_000, UTC)


def test_a_stranger_s_metadata_and_a_flag_as_a_number_are_no_obstacle() -> None:
    read = stripe_subscriptions.from_stripe(data(metadata={"note": "a\0\n"}, cancel_at_period_end=1))
    assert (read.metadata, read.cancel_at_period_end) == ({}, True)
