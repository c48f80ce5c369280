"""Refunds, credit notes and disputes are shown on the invoice, and a correction does not pay the same money twice."""

import uuid
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from billing.v1 import invoice_pb2, subscription_pb2, usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import Ledger

RUN = Decimal("0.10")


async def charged(ledger: Ledger) -> tuple[str, dict[str, Any]]:
    """Let an invoice charge 10 runs; returns their event and the invoice."""
    event_id = uuid.uuid4().hex
    await ledger.world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter="runs", quantity=110)
    )
    await ledger.report()
    await ledger.over_the_period_end()
    return event_id, (await ledger.invoices())[-1]


async def intent_of(ledger: Ledger, invoice_id: str) -> str:
    (payment,) = await ledger.world.sandbox.all("/v1/invoice_payments", invoice=invoice_id)
    return str(payment["payment"]["payment_intent"])


async def shown(ledger: Ledger, invoice_id: str) -> tuple[str, str, int]:
    request = subscription_pb2.ListInvoicesRequest(account_id="org_1")
    found = (await ledger.world.billing.subscriptions.ListInvoices(request)).invoices
    (one,) = [invoice for invoice in found if invoice.invoice_id == invoice_id]
    assert one.status == invoice_pb2.INVOICE_STATUS_PAID
    return one.amount_refunded.amount, one.amount_credited.amount, one.dispute


async def correct(ledger: Ledger, event_id: str, units: int, **more: Any) -> usage_pb2.CorrectUsageResponse:  # noqa: ANN401 - the message's fields
    request = usage_pb2.CorrectUsageRequest(
        account_id="org_1", event_id=event_id, quantity=units, **{"correction_id": uuid.uuid4().hex, **more}
    )
    return await ledger.world.billing.usage.CorrectUsage(request)


async def test_refunds_credit_notes_and_disputes_are_shown(tiers: Ledger) -> None:
    _, invoice = await charged(tiers)
    sandbox = tiers.world.sandbox
    assert await shown(tiers, invoice["id"]) == ("0.00", "0.00", invoice_pb2.DISPUTE_STATE_UNSPECIFIED)
    await sandbox.call("POST", "/v1/refunds", payment_intent=await intent_of(tiers, invoice["id"]), amount=125)
    await tiers.world.deliver_new()
    assert await shown(tiers, invoice["id"]) == ("1.25", "0.00", invoice_pb2.DISPUTE_STATE_UNSPECIFIED)
    await sandbox.call("POST", "/v1/credit_notes", invoice=invoice["id"], amount=50, credit_amount=50)
    await tiers.world.deliver_new()
    assert await shown(tiers, invoice["id"]) == ("1.25", "0.50", invoice_pb2.DISPUTE_STATE_UNSPECIFIED)
    dispute = await sandbox.control("POST", "disputes", {"invoice": invoice["id"]})
    await tiers.world.deliver_new()
    assert (await shown(tiers, invoice["id"]))[2] == invoice_pb2.DISPUTE_STATE_OPEN
    await sandbox.control("POST", f"disputes/{dispute['id']}", {"status": "lost"})
    await tiers.world.deliver_new()
    assert (await shown(tiers, invoice["id"]))[2] == invoice_pb2.DISPUTE_STATE_LOST
    assert await tiers.differences() == []
    assert {state for state, _ in (await tiers.world.inbox_states()).values()} <= {"applied", "ignored"}


async def test_a_refund_whose_events_never_came_is_found_and_mended(tiers: Ledger) -> None:
    _, invoice = await charged(tiers)
    await tiers.world.sandbox.call("POST", "/v1/refunds", payment_intent=await intent_of(tiers, invoice["id"]))
    ((kind, detail),) = await tiers.differences()
    assert (kind, detail) == ("repayment", f"amount_refunded: 0 is {invoice['total']} at Stripe")
    assert await tiers.differences(fix=True) == []
    await tiers.world.execute(sa.update(tables.invoices).values(dispute_status="lost"))
    assert {kind for kind, _ in await tiers.differences()} == {"repayment"}
    assert await tiers.differences(fix=True) == []


async def test_a_refund_of_another_product_s_payment_is_ignored(tiers: Ledger) -> None:
    _, invoice = await charged(tiers)
    (event,) = [one async for one in _refund_events(tiers, invoice["id"])]
    event["data"]["object"]["payment_intent"] = "pi_elsewhere"
    await tiers.world.deliver(event)
    await tiers.world.apply_all()
    assert (await tiers.world.inbox_states())[event["id"]][0] == "ignored"


async def _refund_events(ledger: Ledger, invoice_id: str) -> Any:  # noqa: ANN401 - events as JSON
    await ledger.world.sandbox.call("POST", "/v1/refunds", payment_intent=await intent_of(ledger, invoice_id))
    for event in await ledger.world.events("refund.created"):
        yield event


@pytest.mark.parametrize("how", ["refund", "credit_note", "dispute"])
async def test_a_correction_of_what_was_paid_back_pays_nothing_and_says_so(tiers: Ledger, how: str) -> None:
    event_id, invoice = await charged(tiers)
    sandbox = tiers.world.sandbox
    if how == "refund":
        await sandbox.call("POST", "/v1/refunds", payment_intent=await intent_of(tiers, invoice["id"]), amount=100)
    elif how == "credit_note":
        await sandbox.call("POST", "/v1/credit_notes", invoice=invoice["id"], amount=100, credit_amount=100)
    else:
        dispute = await sandbox.control("POST", "disputes", {"invoice": invoice["id"]})
        await sandbox.control("POST", f"disputes/{dispute['id']}", {"status": "lost"})
    await tiers.world.deliver_new()
    told = await correct(tiers, event_id, 4, correction_id="c1")
    assert (told.billable_quantity, told.billable, told.not_credited_quantity) == (4, 6, 4)
    (credit,) = told.already_credited
    assert credit.invoice_id == invoice["id"]
    again = await correct(tiers, event_id, 4, correction_id="c1")
    assert again.duplicate
    again.duplicate = False
    assert again == told
    await tiers.work()
    assert await tiers.charged_by_meters() == 10 * RUN, "no credit"
    told = await correct(tiers, event_id, 3, even_if_credited=True)
    assert (told.not_credited_quantity, len(told.already_credited)) == (0, 1)
    await tiers.work()
    assert await tiers.charged_by_meters() == 7 * RUN
    assert await tiers.differences() == []


async def test_a_correction_that_pays_follows_after_one_that_does_not(tiers: Ledger) -> None:
    """Neither of them takes the other's units, though the worker sees both at once, with new usage."""
    event_id, invoice = await charged(tiers)
    await tiers.world.sandbox.call(
        "POST", "/v1/refunds", payment_intent=await intent_of(tiers, invoice["id"]), amount=1
    )
    await tiers.world.deliver_new()
    await correct(tiers, event_id, 2, even_if_credited=True)
    assert (await correct(tiers, event_id, 3)).not_credited_quantity == 3
    assert (await correct(tiers, event_id, 1)).not_credited_quantity == 1
    await tiers.work()
    assert await tiers.charged_by_meters() == 8 * RUN
    assert await tiers.differences() == []


@pytest.mark.parametrize("status", ["void", "uncollectible"])
async def test_units_of_an_invoice_that_was_given_up_are_taken_back_first(tiers: Ledger, status: str) -> None:
    event_id = uuid.uuid4().hex
    await tiers.world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter="runs", quantity=110)
    )
    await tiers.report()
    await tiers.give_card("declines")
    await tiers.over_the_period_end()
    invoice = (await tiers.invoices())[-1]
    assert invoice["status"] == "open"
    verb = "void" if status == "void" else "mark_uncollectible"
    await tiers.world.sandbox.call("POST", f"/v1/invoices/{invoice['id']}/{verb}")
    await tiers.world.deliver_new()
    await correct(tiers, event_id, 10)
    await tiers.work()
    reports = [(row.to_units - row.from_units, row.state) for row in await tiers.world.rows(tables.usage_reports)]
    assert sorted(reports) == [(-10, "written_off"), (10, "sent")]
    assert [one for one in await tiers.world.sandbox.all("/v1/invoiceitems") if not one["invoice"]] == []
