import asyncio
import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from billing.v1 import stripe_event_pb2
from billing_svc.inbox import rules
from billing_svc.platform import clock, errors
from billing_svc.platform.database import tables
from billing_svc.stripe import subscriptions as stripe_subscriptions
from tests.billing_svc import books, refusals
from tests.billing_svc.sandboxed import World, event_about

SUBSCRIPTION = {"id": "sub_1", "object": "subscription"}


async def accept(world: World, payload: bytes, event_id: str = "") -> stripe_event_pb2.AcceptStripeEventResponse:
    request = stripe_event_pb2.AcceptStripeEventRequest(payload=payload, event_id=event_id)
    return await world.billing.events.AcceptStripeEvent(request)


async def test_ten_times_at_once_is_stored_once(world: World) -> None:
    payload = json.dumps(event_about(SUBSCRIPTION, "customer.subscription.created", "evt_1")).encode()
    answers = await asyncio.gather(*(accept(world, payload) for _ in range(10)))
    assert sorted((one.stored, one.duplicate) for one in answers) == [(False, True)] * 9 + [(True, False)]
    (row,) = await world.rows(tables.stripe_events)
    assert (row.event_id, row.object_id, row.state, bytes(row.body)) == ("evt_1", "sub_1", "waiting", payload)


@pytest.mark.parametrize(
    ("type_", "livemode", "note"),
    [
        ("payout.frozen", False, "this type changes nothing here"),
        ("customer.subscription.updated", True, "livemode is True, our key's is False"),
    ],
)
async def test_what_is_not_for_us_is_kept_and_ignored(world: World, type_: str, livemode: bool, note: str) -> None:  # noqa: FBT001 - pytest's way
    await world.deliver(event_about(SUBSCRIPTION, type_, "evt_1", livemode=livemode))
    assert await world.inbox_states() == {"evt_1": ("ignored", note)}
    assert await world.inbox.apply_due() == 0


async def test_what_is_no_event_is_refused_and_not_stored(world: World) -> None:
    before = await books.row_counts(world.billing.engine)
    for payload in (
        b"",
        b"x",
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"id": "evt_1"}',
        b'{"id": 7, "type": "a.b"}',
        b'{"id": "evt\\u0000", "type": "a.b"}',
        b'{"id": "", "type": "a.b"}',
        b'{"id": "evt_1", "type": "a\\ud800"}',
        b'{"id": "evt_1", "type": "' + b"a" * 256 + b'"}',
        b'{"id": "evt_1", "type": "a.b", "n": ' + b"9" * 5000 + b"}",
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"id": "evt_1", "type": "a.b", "x": "' + b"x" * rules.BODY_BYTES_MAX + b'"}',
    ):
        refusal = await refusals.refused(accept(world, payload))
        assert (refusal.code.name, refusal.fields) == ("INVALID_ARGUMENT", ("payload",)), payload[:50]
    other = json.dumps(event_about(SUBSCRIPTION, "a.b", "evt_1")).encode()
    assert (await refusals.refused(accept(world, other, "evt_2"))).fields == ("event_id",)
    assert await books.row_counts(world.billing.engine) == before


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**40)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from(["sub_1", "\0", "active", "canceled", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "object", "customer", "status", "items", "data", "metadata", "quantity", "price"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KNOWN_TYPES = ["customer.subscription.deleted", "checkout.session.completed", "checkout.session.expired", "a.b"]
EVENTS = st.fixed_dictionaries(
    {"id": st.text("abc_", min_size=1, max_size=4), "type": st.sampled_from(KNOWN_TYPES), "data": JSON},
    optional={"created": JSON, "livemode": JSON, "api_version": JSON, "object": JSON},
) | st.fixed_dictionaries(
    {
        "id": st.just("evt"),
        "type": st.sampled_from(KNOWN_TYPES),
        "data": st.fixed_dictionaries({"object": JSON}),
    }
)


@hypothesis.given(EVENTS | JSON)
@hypothesis.settings(max_examples=300, deadline=None)
def test_any_json_is_an_event_or_an_invalid_request(body: object) -> None:
    try:
        event = rules.parse(json.dumps(body).encode(), clock.Clock().now())
    except errors.InvalidRequest:
        return
    # All values that are stored in text columns.
    for text in (event.event_id, event.type, event.object_id, event.api_version or ""):
        assert text.isprintable()
        assert len(text.encode()) <= 4 * 255
    if event.checkout is not None:
        assert event.checkout.account_id.isprintable()


@hypothesis.given(JSON)
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_object_is_a_subscription_or_unreadable(data: Any) -> None:  # noqa: ANN401 - anything at all
    if not isinstance(data, dict):
        return
    try:
        stripe_subscriptions.from_stripe(data)
    except errors.StripeObjectUnreadable:
        return


async def test_strange_objects_are_stored_and_end_as_failed_or_ignored(world: World) -> None:
    objects: list[Any] = [
        None,
        [],
        {},
        {"id": "sub_\0"},
        {"id": 10**40},
        {"id": {"id": "sub_1"}},
        {"id": "sub_x", "metadata": {"account_id": "\0", "checkout_id": "\0"}},
        {"id": "x" * 5000},
    ]
    for n, subject in enumerate(objects):
        for type_ in KNOWN_TYPES[:3]:
            await world.deliver(event_about(subject, type_, f"evt_{n}_{type_}", created=10**40))
    await world.apply_all()
    states = await world.inbox_states()
    assert len(states) == 3 * len(objects)
    assert {state for state, _ in states.values()} <= {"failed", "ignored"}
    assert all(note for _, note in states.values())
    assert not any("internal" in str(note) for _, note in states.values()), states
