"""Objects of every API version, fetched and in events: parsed correctly, and no handler crashes."""

import json
from typing import Any

import pytest
import sqlalchemy as sa

from billing.v1 import invoice_pb2, subscription_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.recorded import shapes
from tests.billing_svc.recorded.conftest import Door

SUBSCRIPTION_TYPES = [
    f"customer.subscription.{name}"
    for name in (
        *("created", "updated", "deleted", "paused", "resumed", "trial_will_end", "pending_update_applied"),
        *("pending_update_expired", "something_new"),
    )
]
INVOICE_TYPES = [
    f"invoice.{name}"
    for name in (
        *("created", "updated", "finalized", "finalization_failed", "sent", "paid", "payment_succeeded"),
        *("payment_failed", "payment_action_required", "voided", "marked_uncollectible", "overdue", "will_be_due"),
        *("something_new",),
    )
]


async def subscription_of(door: Door) -> subscription_pb2.Subscription:
    request = subscription_pb2.GetSubscriptionRequest(account_id="org_1")
    return (await door.billing.subscriptions.GetSubscription(request)).subscription


async def invoices_of(door: Door) -> list[invoice_pb2.Invoice]:
    request = subscription_pb2.ListInvoicesRequest(account_id="org_1")
    return list((await door.billing.subscriptions.ListInvoices(request)).invoices)


@pytest.mark.parametrize("version", shapes.VERSIONS)
async def test_objects_of_each_version_are_read_rightly(door: Door, version: str) -> None:
    subscription, invoice = shapes.subscription(version=version), shapes.invoice(version=version)
    door.stripe.put(subscription)
    door.stripe.put(invoice)
    # The invoice may arrive before its subscription.
    events = [shapes.event(type_, invoice, version) for type_ in INVOICE_TYPES]
    events += [shapes.event(type_, subscription, version) for type_ in SUBSCRIPTION_TYPES]
    await door.deliver(*events)
    await door.apply_all()
    states = await door.states()
    assert {state for state, _ in states.values()} == {"applied"}, states
    assert len(states) == len(events)
    assert sorted(door.stripe.reads) == ["/v1/invoices/in_ours", "/v1/subscriptions/sub_ours"]
    told = await subscription_of(door)
    assert (told.plan, told.status) == ("pro", subscription_pb2.STATUS_ACTIVE)
    assert (told.period_start.seconds, told.period_end.seconds) == (shapes.START, shapes.END)
    (shown,) = await invoices_of(door)
    assert (shown.status, shown.number) == (invoice_pb2.INVOICE_STATUS_PAID, "A1B2-0001")
    assert (shown.total.amount, shown.amount_paid.amount, shown.total.currency) == ("50.00", "50.00", "usd")
    assert shown.subscription_id == "sub_ours"
    assert (shown.created_at.seconds, shown.paid_at.seconds) == (shapes.START, shapes.START + 3700)
    assert (shown.hosted_url, shown.pdf_url) == (
        "https://invoice.example.com/i/1",
        "https://pay.example.com/invoice/1/pdf",
    )
    assert [(one.meter, one.amount.amount, one.quantity, one.proration) for one in shown.lines] == [
        ("", "20.00", 1, False),
        ("runs", "30.00", 60, True),
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"parent": None},
        {"parent": {"type": "quote_details", "quote_details": {"quote": "qt_1"}, "subscription_details": None}},
        {"parent": {"type": "a_new_type"}},
        {"lines": None},
        {"lines": {"object": "list", "data": None}},
        {"status_transitions": None, "number": None, "hosted_invoice_url": None, "invoice_pdf": None},
        {"customer": {"id": shapes.CUSTOMER, "object": "customer", "email": None}},
        {"parent": {"subscription_details": {"subscription": {"id": "sub_ours", "object": "subscription"}}}},
        {"subscription": {"id": "sub_ours"}, "parent": None},
        {"billing_reason": "a_new_reason", "collection_method": None, "currency": "USD"},
        {"period_start": None, "period_end": None, "due_date": shapes.END, "next_payment_attempt": shapes.END},
        {"status": None, "amount_paid": None, "attempt_count": None},
        {"lines": {"data": [{"id": "il_1", "amount": -7, "pricing": None, "period": None, "quantity": None}]}},
        {
            "lines": {
                "data": [{"pricing": {"price_details": {"price": {"id": shapes.PRICE}}}, "description": "\0\ud800"}]
            }
        },
    ],
)
async def test_an_invoice_with_null_or_unknown_parts_is_kept(door: Door, more: dict[str, Any]) -> None:
    invoice = shapes.invoice(**more)
    door.stripe.put(invoice)
    await door.deliver(shapes.event("invoice.paid", invoice))
    await door.apply_all()
    ((state, note),) = (await door.states()).values()
    assert (state, note) == ("applied", None)
    (shown,) = await invoices_of(door)
    assert shown.total.amount == "50.00"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"status": "a_new_status"}, subscription_pb2.STATUS_UNKNOWN),
        ({"customer": {"id": shapes.CUSTOMER, "object": "customer", "deleted": True}}, subscription_pb2.STATUS_ACTIVE),
        ({"metadata": None, "discounts": None, "default_tax_rates": None}, subscription_pb2.STATUS_ACTIVE),
        ({"collection_method": "a_new_method", "billing_mode": {"type": "new"}}, subscription_pb2.STATUS_ACTIVE),
        ({"cancel_at": shapes.END}, subscription_pb2.STATUS_ACTIVE),
    ],
)
async def test_a_subscription_with_null_or_unknown_parts_is_kept(door: Door, more: dict[str, Any], status: int) -> None:
    subscription = shapes.subscription(**more)
    door.stripe.put(subscription)
    await door.deliver(shapes.event("customer.subscription.updated", subscription))
    await door.apply_all()
    assert [state for state, _ in (await door.states()).values()] == ["applied"]
    told = await subscription_of(door)
    assert told.status == status
    if "cancel_at" in more:
        assert told.cancel_at.seconds == shapes.END


@pytest.mark.parametrize("more", [{"items": None}, {"items": {"data": []}}, {"status": None}, {"customer": None}])
async def test_a_subscription_that_cannot_be_read_waits_for_a_repair(door: Door, more: dict[str, Any]) -> None:
    door.stripe.put(shapes.subscription(**more))
    await door.deliver(shapes.event("customer.subscription.updated", shapes.subscription()))
    await door.apply_all()
    ((state, note),) = (await door.states()).values()
    assert state == "failed"
    assert note
    assert await door.rows(tables.subscriptions) == []


# Types that a Stripe account sends and that this service ignores, in the forms that their objects had.
OTHERS: list[tuple[str, Any]] = [
    ("charge.succeeded", {"id": "ch_1", "object": "charge", "customer": shapes.CUSTOMER, "invoice": "in_ours"}),
    ("charge.refunded", {"id": "ch_1", "object": "charge", "refunds": None}),
    ("payment_intent.succeeded", {"id": "pi_1", "object": "payment_intent", "charges": {"data": []}}),
    ("payment_method.attached", {"id": "pm_1", "object": "payment_method", "customer": shapes.CUSTOMER}),
    ("customer.created", {"id": shapes.CUSTOMER, "object": "customer", "sources": {"data": []}}),
    ("customer.source.created", {"id": "card_1", "object": "card"}),
    ("customer.discount.created", {"id": "di_1", "object": "discount", "subscription": "sub_ours"}),
    ("invoiceitem.created", {"id": "ii_1", "object": "invoiceitem", "invoice": None}),
    ("invoice_payment.paid", {"id": "inpay_1", "object": "invoice_payment", "invoice": "in_ours"}),
    ("plan.created", {"id": "gold", "object": "plan", "tiers": None}),
    ("price.updated", {"id": shapes.PRICE, "object": "price"}),
    ("product.deleted", {"id": "prod_pro", "object": "product"}),
    ("payout.paid", {"id": "po_1", "object": "payout"}),
    ("account.updated", {"id": "acct_1", "object": "account"}),
    ("subscription_schedule.updated", {"id": "sub_sched_1", "object": "subscription_schedule", "phases": []}),
    ("billing_portal.session.created", {"id": "bps_1", "object": "billing_portal.session"}),
    ("checkout.session.async_payment_failed", {"id": "cs_1", "object": "checkout.session", "subscription": "sub_ours"}),
    ("ping", {}),
    ("v2.core.account.updated", None),
]


async def test_what_is_none_of_our_business_is_kept_and_changes_nothing(door: Door) -> None:
    for version in shapes.VERSIONS:
        await door.deliver(*(shapes.event(type_, subject, version) for type_, subject in OTHERS))
    await door.apply_all()
    states = await door.states()
    assert len(states) >= len(OTHERS)
    why = {"this type changes nothing here", "ch_1 is not the payment of an invoice"}
    assert set(states.values()) == {("ignored", one) for one in why}
    assert await door.rows(tables.audit_log) == []


async def test_the_invoice_that_is_announced_has_no_id_and_is_ignored(door: Door) -> None:
    announced = shapes.invoice()
    del announced["id"]
    await door.deliver(shapes.event("invoice.upcoming", announced, event_id="evt_1"))
    await door.deliver(shapes.event("invoice.upcoming", shapes.invoice("upcoming_in_1"), event_id="evt_2"))
    await door.apply_all()
    assert set((await door.states()).values()) == {("ignored", "the invoice that it announces does not exist yet")}
    assert door.stripe.reads == []


@pytest.mark.parametrize("version", [shapes.OLDEST, shapes.NEWEST])
async def test_what_belongs_to_a_stranger_changes_nothing_and_costs_no_read(door: Door, version: str) -> None:
    subscription = shapes.subscription("sub_theirs", version, customer="cus_theirs")
    invoice = shapes.invoice("in_theirs", version, customer={"id": "cus_theirs", "object": "customer"})
    session = {"id": "cs_1", "object": "checkout.session", "customer": "cus_theirs", "subscription": "sub_theirs"}
    customer = {"id": "cus_theirs", "object": "customer"}
    await door.deliver(
        *(shapes.event(type_, subscription, version) for type_ in SUBSCRIPTION_TYPES),
        *(shapes.event(type_, invoice, version) for type_ in [*INVOICE_TYPES, "invoice.deleted"]),
        *(shapes.event(f"checkout.session.{name}", session, version) for name in ("completed", "expired")),
        *(shapes.event(f"customer.{name}", customer, version) for name in ("updated", "deleted")),
    )
    await door.apply_all()
    assert set((await door.states()).values()) == {("ignored", "customer cus_theirs is not ours")}
    assert door.stripe.reads == []
    for table in (tables.subscriptions, tables.invoices, tables.audit_log):
        assert await door.rows(table) == []


async def test_a_stranger_is_found_out_by_the_fetch_where_the_payload_names_nobody(door: Door) -> None:
    door.stripe.put(shapes.invoice(customer="cus_theirs"))
    await door.deliver(shapes.event("invoice.paid", {"id": "in_ours", "object": "invoice"}, event_id="evt_1"))
    await door.apply_all()
    assert await door.states() == {"evt_1": ("ignored", "customer cus_theirs is not ours")}
    assert await door.rows(tables.invoices) == []


async def test_the_other_livemode_is_ignored_also_when_replayed(door: Door) -> None:
    await door.deliver(shapes.event("invoice.paid", shapes.invoice(), event_id="evt_1", livemode=True))
    reason = ("ignored", "livemode is True, our key's is False")
    assert await door.states() == {"evt_1": reason}
    async with door.billing.engine.begin() as conn:
        await conn.execute(sa.update(tables.stripe_events).values(state="waiting", closed_at=None))
    await door.apply_all()
    assert await door.states() == {"evt_1": reason}
    assert door.stripe.reads == []


async def test_two_hundred_events_of_one_subscription_cost_one_read(door: Door) -> None:
    subscription = shapes.subscription()
    door.stripe.put(subscription)
    for number in range(200):
        body = shapes.event("customer.subscription.updated", subscription, event_id=f"evt_{number}")
        assert await door.post(json.dumps(body).encode()) == 200
    await door.apply_all()
    assert {state for state, _ in (await door.states()).values()} == {"applied"}
    assert door.stripe.reads == ["/v1/subscriptions/sub_ours"]
    assert len(await door.rows(tables.audit_log)) == 1
