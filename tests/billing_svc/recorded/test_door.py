"""What is wrong in one object at Stripe: it is named, it holds up nothing else, and what needs no price is applied."""

import json
from typing import Any

import pytest

from billing.v1 import subscription_pb2
from billing_svc.catalog import versions
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.reconciliation import objects, reconcile
from billing_svc.stripe import client
from tests.billing_svc.recorded import shapes
from tests.billing_svc.recorded.conftest import Door

ORIGIN = audit_store.Origin("operator:test")


def deep(subscription: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    """Return a copy with one value replaced."""
    changed: dict[str, Any] = json.loads(json.dumps(subscription))
    part: Any = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return changed


async def stored(door: Door) -> Any:  # noqa: ANN401 - a row
    door.stripe.put(shapes.subscription())
    await door.deliver(shapes.event("customer.subscription.created", shapes.subscription(), event_id="evt_first"))
    await door.apply_all()
    (row,) = await door.rows(tables.subscriptions)
    assert (row.status, row.plan, row.quantity) == ("active", "pro", 1)
    return row


WRONG: list[tuple[tuple[Any, ...], object]] = [
    (("items", "data", 0, "quantity"), True),
    (("items", "data", 0, "quantity"), 1.5),
    (("items", "data", 0, "current_period_end"), 10**12),
    (("items", "data", 0, "price"), {"id": 7}),
    (("items", "data"), None),
    (("metadata", "checkout_id"), "a\0b"),
    (("trial_end",), "soon"),
    (("billing_cycle_anchor",), True),
    (("pause_collection",), {"behavior": 7}),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: str(value)[:40])
async def test_an_end_is_applied_whatever_else_cannot_be_read(door: Door, path: tuple[Any, ...], value: object) -> None:
    await stored(door)
    over = shapes.subscription(status="canceled", ended_at=shapes.START + 3600, canceled_at=shapes.START + 3600)
    door.stripe.put(deep(over, path, value))
    await door.deliver(shapes.event("customer.subscription.updated", shapes.subscription(), event_id="evt_wrong"))
    await door.apply_all()
    state, note = (await door.states())["evt_wrong"]
    assert state == "failed"
    assert str(note).startswith("subscription sub_ours: ")
    assert str(path[0]) in str(note)
    (row,) = await door.rows(tables.subscriptions)
    assert (row.status, row.plan, row.effective_until) == ("canceled", "pro", row.ended_at)
    request = subscription_pb2.GetSubscriptionRequest(account_id="org_1")
    told = (await door.billing.subscriptions.GetSubscription(request)).subscription
    assert (told.plan, told.status) == ("free", subscription_pb2.STATUS_CANCELED)


async def test_an_end_is_applied_where_no_price_is_of_a_catalog(door: Door) -> None:
    await stored(door)
    over = shapes.subscription(status="canceled", ended_at=shapes.START + 3600)
    for item in over["items"]["data"]:
        item["price"] = "price_made_by_hand"
    door.stripe.put(over)
    await door.deliver(shapes.event("customer.subscription.deleted", shapes.subscription(), event_id="evt_wrong"))
    await door.apply_all()
    (row,) = await door.rows(tables.subscriptions)
    assert (row.status, row.plan) == ("canceled", "pro")
    assert row.effective_until == row.ended_at


async def test_a_subscription_that_was_never_understood_gives_nothing(door: Door) -> None:
    door.stripe.put(deep(shapes.subscription(), *WRONG[0]))
    await door.deliver(shapes.event("customer.subscription.created", shapes.subscription(), event_id="evt_wrong"))
    await door.apply_all()
    assert await door.states() == {
        "evt_wrong": (
            "failed",
            "subscription sub_ours: items.data[0].quantity is true, not a whole number from 0 to 1000000000",
        )
    }
    assert await door.rows(tables.subscriptions) == []


async def test_a_stranger_s_unreadable_subscription_is_ignored(door: Door) -> None:
    wrong = deep(shapes.subscription(customer="cus_other"), *WRONG[0])
    door.stripe.put(wrong)
    await door.deliver(shapes.event("customer.subscription.updated", {"id": "sub_ours"}, event_id="evt_wrong"))
    await door.apply_all()
    assert await door.states() == {"evt_wrong": ("ignored", "customer cus_other is not ours")}


async def test_a_nul_in_a_meter_error_s_identifier_is_parked(door: Door) -> None:
    event = shapes.thin_event("v1.billing.meter.error_report_triggered", "evt_thin", {"id": "mtr_1"})
    sample = {"error_message": "no customer\0", "request": {"identifier": "r\0"}}
    kinds = [{"code": "meter_event_no_customer_defined", "sample_errors": [sample]}]
    door.stripe.objects["/v2/core/events/evt_thin"] = {
        **event,
        "data": {"developer_message_summary": "wrong\0", "reason": {"error_count": 1, "error_types": kinds}},
    }
    await door.deliver(event)
    await door.apply_all()
    ((state, note),) = (await door.states()).values()
    assert state == "failed"
    assert note == (
        "event evt_thin: data.reason.error_types[0].sample_errors[0].request.identifier is a text with a character "
        "that cannot be stored, not a text of printable characters"
    )


@pytest.mark.parametrize(
    ("body", "status", "what"),
    [
        (b"<html>Bad Gateway</html>", 502, "something that is not JSON (HTTP status 502)"),
        (b"<html>Sign in</html>", 200, "something that is not JSON (HTTP status 200)"),
        (b"", 200, "an empty body (HTTP status 200)"),
    ],
)
async def test_what_came_instead_of_an_answer_is_said(door: Door, body: bytes, status: int, what: str) -> None:
    door.stripe.put(shapes.invoice())
    door.stripe.body, door.stripe.status = body, status
    await door.deliver(shapes.event("invoice.paid", shapes.invoice(), event_id="evt_1"))
    await door.inbox.apply_due()
    state, note = (await door.states())["evt_1"]
    assert state == "waiting"
    assert what in str(note)


async def test_a_missing_second_page_of_lines_is_said(door: Door) -> None:
    invoice = shapes.invoice()
    invoice["lines"]["has_more"] = True
    door.stripe.put(invoice)
    await door.deliver(shapes.event("invoice.paid", shapes.invoice(), event_id="evt_1"))
    await door.apply_all()
    note = "invoice in_ours: lines: Stripe has no page after the line il_0001"
    assert await door.states() == {"evt_1": ("failed", note)}


async def test_reconcile_gives_a_row_to_what_it_cannot_read_and_compares_the_rest(door: Door) -> None:
    await stored(door)
    door.stripe.objects["/v1/subscriptions"] = [
        shapes.subscription("sub_wrong", items=None),
        shapes.subscription(cancel_at=shapes.END),
        {"id": "sub_no_customer"},
    ]
    line = shapes.line(0, shapes.PRICE, 1, 1)
    line["pricing"]["unit_amount_decimal"] = "a lot"
    door.stripe.objects["/v1/invoices"] = [
        shapes.invoice("in_wrong", total=10.5),
        shapes.invoice("in_new", lines=[line]),
    ]
    stripe = client.Stripe.from_settings(door.billing.settings)
    comparison = objects.ObjectReconciliation(
        door.billing.transactions, versions.CatalogCache(), stripe, door.billing.clock
    )
    door.stripe.objects["/v1/charges"] = []
    since = door.billing.clock.now() - objects.INVOICES_SINCE
    found = {one.object_id: (one.account_id, one.detail) for one in await comparison.compare(None, since)}
    assert found["sub_wrong"] == ("org_1", "subscription sub_wrong: items is null, not an object")
    assert found["in_wrong"][0] == "org_1"
    assert found["in_wrong"][1].startswith("invoice in_wrong: total is 10.5, not a whole number")
    assert "cancel_at" in found["sub_ours"][1]
    assert found["in_new"] == ("org_1", "is not stored here")
    assert set(found) == {"sub_wrong", "sub_ours", "in_wrong", "in_new"}
    door.stripe.objects["/v1/billing/meters"] = [{"id": "mtr_1"}]
    door.stripe.objects["/v1/customers"] = [{"id": shapes.CUSTOMER}]
    outcome = await reconcile.Comparison(
        door.billing.transactions, versions.CatalogCache(), stripe, door.billing.clock
    ).run(ORIGIN, reconcile.Scope(), reconcile.RunOptions(fix=True))
    assert {"sub_wrong", "in_wrong"} <= {row.about for row in outcome.findings}
    await stripe.close()
