"""Valid bodies and objects with random parts replaced: accepted or refused, but never a crash."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from billing_svc.inbox import rules
from billing_svc.platform import clock, errors
from billing_svc.platform.database import tables
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.invoices import rules as invoices_rules
from billing_svc.usage_export import meter_errors
from tests.billing_svc.recorded import shapes
from tests.billing_svc.recorded.conftest import Door

# The replacements.
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 1.5, float("1e308")),
    *("", "x", "sub_ours", "in_ours", shapes.CUSTOMER, "\0", "\ud800", "x" * 300, "canceled", "2026-11-20T12:00:00Z"),
    *([], {}, [None], [[]], [{}], {"id": None}, {"id": "sub_ours"}, {"data": None}, {"data": [None]}, {"object": "x"}),
]
TYPES = [
    *(f"customer.subscription.{name}" for name in ("created", "updated", "deleted", "paused", "new")),
    *(f"invoice.{name}" for name in ("created", "paid", "payment_failed", "deleted", "upcoming", "new")),
    *("customer.updated", "customer.deleted", "checkout.session.completed", "checkout.session.expired"),
    *("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found", "payout.paid"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    """Yield the path of every part of a document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutated(document: Any, rng: random.Random) -> Any:  # noqa: ANN401 - JSON
    """Return a copy with one to four parts replaced, removed, doubled or swapped."""
    changed = copy.deepcopy(document)
    for _ in range(rng.randint(1, 4)):
        path = rng.choice(list(places(changed)) or [()])
        if not path:
            return rng.choice(STRANGE)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        match rng.choice(("replace", "replace", "remove", "wrap")):
            case "replace":
                parent[path[-1]] = copy.deepcopy(rng.choice(STRANGE))
            case "remove":
                del parent[path[-1]]
            case "wrap":
                parent[path[-1]] = rng.choice(([parent[path[-1]]], {"id": parent[path[-1]]}))
    return changed


SUBJECTS = [
    *(shapes.subscription(version=version) for version in shapes.VERSIONS),
    *(shapes.invoice(version=version) for version in shapes.VERSIONS),
    {"id": shapes.CUSTOMER, "object": "customer"},
    {"id": "cs_1", "customer": shapes.CUSTOMER, "subscription": "sub_ours", "metadata": {"account_id": "org_1"}},
]
SEEDS = st.integers(min_value=0, max_value=2**32)


def strange_event(rng: random.Random, number: int = 0) -> dict[str, Any]:
    """Return an event whose id and type are valid; the rest may be invalid."""
    whole = shapes.event("invoice.paid", rng.choice(SUBJECTS))
    if rng.random() < 0.1:
        whole = shapes.thin_event("x", "x", {"id": "mtr_1"})
    changed = mutated(whole, rng)
    if not isinstance(changed, dict):
        changed = {}
    return {**changed, "id": f"evt_{number}", "type": rng.choice(TYPES)}


@hypothesis.given(SEEDS)
@hypothesis.settings(max_examples=400, deadline=None)
def test_a_mutated_event_is_an_event(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a seed
    event = rules.parse(json.dumps(strange_event(rng)).encode(), clock.Clock().now())
    for text in (event.object_id, event.customer_id or "", event.subscription_id or "", event.api_version or ""):
        assert text.isprintable()
        assert len(text) <= rules.ID_LENGTH_MAX
    assert event.kind is None or isinstance(event.kind, rules.ObjectKind)
    assert event.ignored_because(livemode=False) is None or event.ignored_because(livemode=False)


@hypothesis.given(SEEDS)
@hypothesis.settings(max_examples=200, deadline=None)
def test_a_mutated_body_is_an_event_or_an_invalid_request(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a seed
    body = bytearray(json.dumps(shapes.event("invoice.paid", rng.choice(SUBJECTS))).encode())
    for _ in range(rng.randint(1, 5)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    try:
        rules.parse(bytes(body), clock.Clock().now())
    except errors.InvalidRequest:
        return


READERS: list[Callable[[object], object]] = [
    stripe_subscriptions.from_stripe,
    stripe_subscriptions.standing,
    invoices_rules.from_stripe,
    meter_errors.from_stripe,
]
METER_ERROR = {
    "id": "evt_thin",
    "related_object": {"id": "mtr_1"},
    "data": {
        "developer_message_summary": "wrong",
        "reason": {
            "error_count": 1,
            "error_types": [
                {"code": "x", "sample_errors": [{"error_message": "wrong", "request": {"identifier": "r_1"}}]}
            ],
        },
    },
}


@hypothesis.given(SEEDS)
@hypothesis.settings(max_examples=1500, deadline=None)
def test_a_mutated_object_is_read_or_refused_with_object_and_field(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a seed
    subject, refused = mutated(rng.choice([*SUBJECTS, METER_ERROR]), rng), list[errors.StripeObjectUnreadable]()
    for read in READERS:
        try:
            found = read(subject)
        except errors.StripeObjectUnreadable as error:
            refused.append(error)
        else:
            # Every text of it can be stored.
            assert "\\x00" not in repr(found)
            assert "\\ud800" not in repr(found)
    for refusal in refused:
        assert refusal.metadata["object"]
        assert refusal.metadata["field"] or "not an object" in refusal.message
        assert refusal.message.startswith(refusal.metadata["object"])
        assert refusal.message.isprintable()


@pytest.mark.parametrize("seed", range(3))
async def test_no_mutation_crashes_a_handler(door: Door, seed: int) -> None:
    """Mutated events arrive at the gateway, mutated objects on the fetch; afterwards a valid event is still applied."""
    rng = random.Random(seed)  # noqa: S311 - a seed
    events = [strange_event(rng, number) for number in range(120)]
    for event in events:
        status = await door.post(json.dumps(event).encode())
        assert status in {200, 400}, event
    for _ in range(3):
        for subject in (shapes.subscription(version=rng.choice(list(shapes.VERSIONS))), shapes.invoice()):
            served = mutated(subject, rng)
            folder = "invoices" if subject["object"] == "invoice" else "subscriptions"
            door.stripe.objects[f"/v1/{folder}/{subject['id']}"] = served if isinstance(served, dict) else {}
        await door.apply_all()
        for kind in ("subscription.updated", "invoice.paid"):
            about = shapes.invoice() if kind.startswith("invoice") else shapes.subscription()
            type_ = kind if kind.startswith("invoice") else f"customer.{kind}"
            await door.deliver(shapes.event(type_, about, event_id=f"evt_{kind}_{rng.random()}"))
    door.stripe.put(shapes.subscription())
    door.stripe.put(shapes.invoice())
    await door.apply_all()
    states = await door.states()
    assert not [note for _, note in states.values() if "internal" in str(note)], states
    assert {state for state, _ in states.values()} <= {"applied", "ignored", "failed"}
    # What failed says of which object; a field is named where it was a field.
    assert all(note for state, note in states.values() if state == "failed")
    (invoice,) = await door.rows(tables.invoices, tables.invoices.c.invoice_id == "in_ours")
    assert invoice.total == 5000
