import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, billing_at


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def _open_invoice(billing: Billing) -> str:
    await billing.card("declines")
    await billing.api.invoice_items.create_async({"customer": billing.customer, "amount": 700, "currency": "usd"})
    draft = await billing.api.invoices.create_async(
        {"customer": billing.customer, "pending_invoice_items_behavior": "include"}
    )
    final = await billing.api.invoices.finalize_invoice_async(draft.id)
    assert final.status == "open"
    return str(final.id)


async def test_an_invoice_is_given_up_and_can_still_be_voided(billing: Billing) -> None:
    invoice_id = await _open_invoice(billing)
    marked = await billing.api.invoices.mark_uncollectible_async(invoice_id)
    assert (marked.status, marked.amount_remaining, marked.auto_advance) == ("uncollectible", 700, False)
    assert marked.status_transitions.marked_uncollectible_at is not None
    with pytest.raises(stripe.InvalidRequestError, match="Only an invoice that is open"):
        await billing.api.invoices.mark_uncollectible_async(invoice_id)
    voided = await billing.api.invoices.void_invoice_async(invoice_id)
    assert voided.status == "void"
    assert await billing.types("invoice.") == [
        "invoice.created",
        "invoice.finalized",
        "invoice.marked_uncollectible",
        "invoice.voided",
    ]


async def test_an_invoice_that_was_given_up_can_be_paid_outside_stripe(billing: Billing) -> None:
    invoice_id = await _open_invoice(billing)
    await billing.api.invoices.mark_uncollectible_async(invoice_id)
    paid = await billing.api.invoices.pay_async(invoice_id, {"paid_out_of_band": True})
    assert (paid.status, paid.amount_paid_off_stripe) == ("paid", 700)


async def test_items_on_a_draft_are_changed_and_deleted(billing: Billing) -> None:
    made = [
        await billing.api.invoice_items.create_async(
            {"customer": billing.customer, "amount": amount, "currency": "usd"}
        )
        for amount in (700, 900)
    ]
    draft = await billing.api.invoices.create_async(
        {"customer": billing.customer, "pending_invoice_items_behavior": "include"}
    )
    await billing.api.invoice_items.update_async(made[0].id, {"amount": 650, "description": "agreed by phone"})
    await billing.api.invoice_items.delete_async(made[1].id)
    left = await billing.api.invoices.retrieve_async(draft.id)
    assert [(line.amount, line.description) for line in left.lines.data] == [(650, "agreed by phone")]
    assert (left.total, left.amount_due) == (650, 650)
    await billing.api.invoices.finalize_invoice_async(draft.id)
    for act in (billing.api.invoice_items.delete_async(made[0].id), billing.api.invoice_items.update_async(made[0].id)):
        with pytest.raises(stripe.InvalidRequestError, match="not a draft"):
            await act


async def test_a_deleted_customers_invoices_do_nothing_by_themselves(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.advance_to(made["items"].data[0].current_period_end)
    assert (await billing.invoices())[-1].status == "draft"
    await billing.api.customers.delete_async(billing.customer)
    await billing.advance(10 * DAY)
    draft = (await billing.invoices())[-1]
    assert (draft.status, draft.auto_advance) == ("draft", False)
    assert (await billing.subscription(made.id)).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError, match="was deleted"):
        await billing.api.invoices.finalize_invoice_async(draft.id)
    assert (await billing.sandbox.http.get("/_sandbox/clock")).json()["next"] is None
