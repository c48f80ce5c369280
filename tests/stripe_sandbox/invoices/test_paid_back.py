import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.billing import Billing, billing_at


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def _final(billing: Billing, *amounts: int) -> Any:  # noqa: ANN401 - the SDK's object
    for amount in amounts:
        await billing.api.invoice_items.create_async(
            {"customer": billing.customer, "amount": amount, "currency": "usd", "description": f"Part {amount}"}
        )
    draft = await billing.api.invoices.create_async(
        {"customer": billing.customer, "pending_invoice_items_behavior": "include"}
    )
    return await billing.api.invoices.finalize_invoice_async(draft.id)


async def _intent(billing: Billing, invoice_id: str) -> Any:  # noqa: ANN401 - the SDK's object
    found = await billing.api.invoices.retrieve_async(invoice_id, {"expand": ["payments.data.payment.payment_intent"]})
    [payment] = found.payments.data
    return payment.payment.payment_intent


async def test_a_refund_changes_the_charge_and_leaves_the_invoice_paid(billing: Billing) -> None:
    invoice = await _final(billing, 2500)
    assert (await _intent(billing, invoice.id)).status == "requires_payment_method"
    await billing.api.invoices.pay_async(invoice.id)
    intent = await _intent(billing, invoice.id)
    assert (intent.status, intent.amount_received) == ("succeeded", 2500)
    listed = await billing.api.invoice_payments.list_async({"invoice": invoice.id})
    assert [(each.status, each.amount_paid) for each in listed.data] == [("paid", 2500)]
    refund = await billing.api.refunds.create_async({"payment_intent": intent.id, "amount": 1000})
    assert (refund.status, refund.amount, refund.charge) == ("succeeded", 1000, intent.latest_charge)
    rest = await billing.api.refunds.create_async({"charge": intent.latest_charge})
    assert rest.amount == 1500
    charge = await billing.api.charges.retrieve_async(intent.latest_charge)
    assert (charge.amount_refunded, charge.refunded) == (2500, True)
    after = await billing.api.invoices.retrieve_async(invoice.id)
    assert (after.status, after.amount_paid, after.post_payment_credit_notes_amount) == ("paid", 2500, 0)
    with pytest.raises(stripe.InvalidRequestError, match="already been refunded"):
        await billing.api.refunds.create_async({"charge": intent.latest_charge})
    assert await billing.types("charge.") == ["charge.refunded", "charge.refunded"]


async def test_a_credit_note_lowers_what_an_open_invoice_still_asks(billing: Billing) -> None:
    invoice = await _final(billing, 2500)
    note = await billing.api.credit_notes.create_async({"invoice": invoice.id, "amount": 1000})
    assert (note.type, note.pre_payment_amount, note.post_payment_amount) == ("pre_payment", 1000, 0)
    lowered = await billing.api.invoices.retrieve_async(invoice.id)
    assert (lowered.status, lowered.total, lowered.amount_due, lowered.amount_remaining) == ("open", 2500, 1500, 1500)
    assert lowered.pre_payment_credit_notes_amount == 1000
    voided = await billing.api.credit_notes.void_credit_note_async(note.id)
    assert voided.status == "void"
    await billing.api.credit_notes.create_async({"invoice": invoice.id, "amount": 500})
    paid = await billing.api.invoices.pay_async(invoice.id)
    assert (paid.amount_paid, paid.pre_payment_credit_notes_amount) == (2000, 500)


async def test_an_invoice_that_is_credited_whole_is_paid_without_a_charge(billing: Billing) -> None:
    invoice = await _final(billing, 2500)
    await billing.api.credit_notes.create_async({"invoice": invoice.id, "amount": 2500})
    after = await billing.api.invoices.retrieve_async(invoice.id)
    assert (after.status, after.amount_paid, after.amount_remaining) == ("paid", 0, 0)
    assert (await billing.api.charges.list_async({"customer": billing.customer})).data == []


async def test_a_credit_note_after_the_payment_refunds_and_credits(billing: Billing) -> None:
    invoice = await _final(billing, 1500, 1000)
    await billing.api.invoices.pay_async(invoice.id)
    line = next(each for each in invoice.lines.data if each.amount == 1000)
    asked = {
        "invoice": invoice.id,
        "lines": [{"type": "invoice_line_item", "invoice_line_item": line.id, "amount": 900}],
    }
    with pytest.raises(stripe.InvalidRequestError, match="must be 900"):
        await billing.api.credit_notes.create_async({**asked, "refund_amount": 100})
    note = await billing.api.credit_notes.create_async(
        {**asked, "refund_amount": 400, "credit_amount": 300, "out_of_band_amount": 200, "reason": "order_change"}
    )
    assert (note.type, note.post_payment_amount, note.lines.data[0].invoice_line_item) == ("post_payment", 900, line.id)
    after = await billing.api.invoices.retrieve_async(invoice.id)
    assert (after.status, after.amount_paid, after.post_payment_credit_notes_amount) == ("paid", 2500, 900)
    assert (await billing.api.customers.retrieve_async(billing.customer)).balance == -300
    refunds = await billing.api.refunds.list_async({"charge": (await _intent(billing, invoice.id)).latest_charge})
    assert [each.amount for each in refunds.data] == [400]
    with pytest.raises(stripe.InvalidRequestError, match="between 1 and 1600"):
        await billing.api.credit_notes.create_async({"invoice": invoice.id, "amount": 1700, "refund_amount": 1700})
    assert await billing.types("credit_note.") == ["credit_note.created"]


async def test_a_revision_takes_the_place_of_an_open_invoice(billing: Billing) -> None:
    invoice = await _final(billing, 1500, 1000)
    revision = await billing.api.invoices.create_async({"from_invoice": {"action": "revision", "invoice": invoice.id}})
    assert (revision.status, revision.total, revision.from_invoice.invoice) == ("draft", 2500, invoice.id)
    first = await billing.api.invoices.retrieve_async(invoice.id)
    assert (first.status, first.latest_revision) == ("open", None)
    item = revision.lines.data[0].parent.invoice_item_details.invoice_item
    await billing.api.invoice_items.delete_async(item)
    await billing.api.invoices.finalize_invoice_async(revision.id)
    first = await billing.api.invoices.retrieve_async(invoice.id)
    assert (first.status, first.latest_revision) == ("void", revision.id)
    paid = await billing.api.invoices.pay_async(revision.id)
    assert paid.status == "paid"
    with pytest.raises(stripe.InvalidRequestError, match="Only a one-off invoice"):
        await billing.api.invoices.create_async({"from_invoice": {"action": "revision", "invoice": invoice.id}})


@pytest.mark.parametrize("decision", ["won", "lost"])
async def test_a_dispute_leaves_the_invoice_paid(billing: Billing, decision: str) -> None:
    made = await billing.subscribe()
    [invoice] = await billing.invoices()
    opened = await billing.control("disputes", {"invoice": invoice.id})
    assert (opened["status"], opened["amount"]) == ("needs_response", 2000)
    charge = await billing.api.charges.retrieve_async(opened["charge"])
    assert charge.disputed is True
    await billing.control(f"disputes/{opened['id']}", {"status": decision})
    assert (await billing.api.disputes.retrieve_async(opened["id"])).status == decision
    assert [each.status for each in await billing.invoices()] == ["paid"]
    assert (await billing.subscription(made.id)).status == "active"
    expected = ["charge.dispute.created", "charge.dispute.funds_withdrawn", "charge.dispute.closed"]
    reinstated = ["charge.dispute.funds_reinstated"] if decision == "won" else []
    assert await billing.types("charge.dispute.") == expected + reinstated
    with pytest.raises(stripe.InvalidRequestError, match="already"):
        await billing.api.disputes.close_async(opened["id"])
