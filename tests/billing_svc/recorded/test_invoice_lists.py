"""Invoices as callers and operators see them, page by page."""

from collections.abc import Sequence

import sqlalchemy as sa

from billing.v1 import admin_pb2, invoice_pb2, subscription_pb2
from billing_svc.api import fields
from billing_svc.api.conversions import invoices as conversions
from billing_svc.platform.database import tables
from tests.billing_svc import refusals
from tests.billing_svc.recorded import shapes
from tests.billing_svc.recorded.conftest import Door

PAID = invoice_pb2.INVOICE_STATUS_PAID
STATUSES = ["paid", "open", "draft", "void", "uncollectible", "a_new_one", "paid"]


async def fill(door: Door) -> None:
    """Seven invoices of org_1, an hour apart except the last two; one of another account."""
    async with door.billing.engine.begin() as conn:
        await conn.execute(
            sa.insert(tables.stripe_customers).values(
                customer_id="cus_2", account_id="org_2", linked_at=door.billing.clock.now()
            )
        )
    for number, status in enumerate(STATUSES):
        at = shapes.START + 3600 * min(number, 5)
        invoice = shapes.invoice(f"in_{number}", status=status, created=at)
        door.stripe.put(invoice)
        await door.deliver(shapes.event("invoice.updated", invoice))
    other = shapes.invoice("in_other", customer="cus_2", created=shapes.START + 90_000)
    door.stripe.put(other)
    await door.deliver(shapes.event("invoice.updated", other))
    await door.apply_all()


def ids(invoices: Sequence[invoice_pb2.Invoice]) -> list[str]:
    return [one.invoice_id.removeprefix("in_") for one in invoices]


async def test_an_account_s_invoices_newest_first(door: Door) -> None:
    await fill(door)
    call = door.billing.subscriptions.ListInvoices
    seen: list[str] = []
    token = ""
    while True:
        page = await call(subscription_pb2.ListInvoicesRequest(account_id="org_1", page_size=2, page_token=token))
        seen += ids(page.invoices)
        token = page.next_page_token
        if not token:
            break
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]
    paid = await call(subscription_pb2.ListInvoicesRequest(account_id="org_1", status=PAID))
    assert ids(paid.invoices) == ["6", "0"]
    unknown = invoice_pb2.INVOICE_STATUS_UNKNOWN
    told = await call(subscription_pb2.ListInvoicesRequest(account_id="org_1", status=unknown))
    assert [(one.invoice_id, one.status) for one in told.invoices] == [("in_5", unknown)]
    assert not (await call(subscription_pb2.ListInvoicesRequest(account_id="nobody"))).invoices


async def test_a_token_opens_no_other_account(door: Door) -> None:
    await fill(door)
    call = door.billing.subscriptions.ListInvoices
    page = await call(subscription_pb2.ListInvoicesRequest(account_id="org_1", page_size=2))
    for account_id, token in (("org_2", page.next_page_token), ("org_1", page.next_page_token + "x"), ("org_1", "e30")):
        request = subscription_pb2.ListInvoicesRequest(account_id=account_id, page_token=token)
        assert (await refusals.refused(call(request))).reason == "INVALID_PAGE_TOKEN"
    bad = subscription_pb2.ListInvoicesRequest(account_id="", page_size=501, status=99)  # type: ignore[arg-type]  # no such status
    assert (await refusals.refused(call(bad))).fields == ("account_id", "status", "page_size")


async def test_all_invoices_are_listed_and_filtered(door: Door) -> None:
    await fill(door)
    call = door.billing.admin.ListAllInvoices
    everything = await call(admin_pb2.ListAllInvoicesRequest())
    assert ids(everything.invoices) == ["other", "6", "5", "4", "3", "2", "1", "0"]
    assert {one.account_id for one in everything.invoices} == {"org_1", "org_2"}
    since, before = everything.invoices[5].created_at, everything.invoices[3].created_at
    between = await call(admin_pb2.ListAllInvoicesRequest(created_from=since, created_before=before))
    assert ids(between.invoices) == ["3", "2"]
    first = await call(admin_pb2.ListAllInvoicesRequest(status=PAID, page_size=1))
    rest = await call(admin_pb2.ListAllInvoicesRequest(status=PAID, page_token=first.next_page_token))
    assert ids([*first.invoices, *rest.invoices]) == ["other", "6", "0"]


async def test_a_page_ends_before_it_outgrows_a_client(door: Door) -> None:
    lines = [shapes.line(number, shapes.PRICE, 1, 1) | {"description": "x" * 1000} for number in range(100)]
    for number in range(40):
        invoice = shapes.invoice(f"in_{number:02}", lines=lines)
        door.stripe.put(invoice)
        # The data in the event are not used.
        await door.deliver(shapes.event("invoice.paid", {"id": invoice["id"], "customer": shapes.CUSTOMER}))
    await door.apply_all()
    seen: list[str] = []
    token = ""
    pages = 0
    while True:
        request = admin_pb2.ListAllInvoicesRequest(page_size=500, page_token=token)
        page = await door.billing.admin.ListAllInvoices(request)
        assert page.ByteSize() < conversions.PAGE_BYTES_MAX + 1000
        seen += ids(page.invoices)
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert (len(seen), len(set(seen))) == (40, 40)
    assert pages > 1
    assert fields.from_page_token(token) == ""
