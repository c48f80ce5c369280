"""Acts of a person in the dashboard: invoices, coupons, refunds."""

from tests.faults.walk.walker import SUBSCRIPTIONS, Act, Walker

INVOICES = "/v1/invoices"
ITEMS = "/v1/invoiceitems"


async def _do(walker: Walker, what: str, *statuses: str, **params: object) -> None:
    invoice = await walker.an_invoice(*statuses)
    if invoice is not None:
        await walker.stripe("POST", f"{INVOICES}/{invoice['id']}/{what}", **params)


async def void_an_invoice(walker: Walker) -> None:
    """Void an open invoice."""
    await _do(walker, "void", "open", "uncollectible")


async def give_an_invoice_up(walker: Walker) -> None:
    """Mark an open invoice as uncollectible."""
    await _do(walker, "mark_uncollectible", "open")


async def note_a_payment(walker: Walker) -> None:
    """Mark an invoice as paid outside of Stripe."""
    await _do(walker, "pay", "open", "uncollectible", paid_out_of_band="true")


async def finalize_a_draft(walker: Walker) -> None:
    """Make a draft final by hand."""
    await _do(walker, "finalize", "draft")


async def delete_a_draft(walker: Walker) -> None:
    """Delete a draft."""
    invoice = await walker.an_invoice("draft")
    if invoice is not None:
        await walker.stripe("DELETE", f"{INVOICES}/{invoice['id']}")


async def delete_a_late_item(walker: Walker) -> None:
    """Delete a pending item for late usage."""
    items = [one for one in await walker.all(ITEMS) if one["customer"] in walker.customers and not one["invoice"]]
    item = walker.one_of([one for one in items if (one["metadata"] or {}).get("usage_report")])
    if item is not None:
        walker.deleted_items.add(item["id"])
        await walker.stripe("DELETE", f"{ITEMS}/{item['id']}")


async def leave_an_item_pending(walker: Walker) -> None:
    """Leave an item of another team pending on the customer."""
    customer = await walker.customer()
    if customer is not None:
        await walker.stripe("POST", ITEMS, customer=customer, amount=70_000, currency="usd", description="Consulting")


async def refund_a_payment(walker: Walker) -> None:
    """Refund a payment, or a part of it."""
    intents = [one for one in await walker.all("/v1/payment_intents") if one["customer"] in walker.customers]
    intent = walker.one_of([one for one in intents if one["status"] == "succeeded"])
    if intent is not None:
        amount = max(1, intent["amount"] // walker.draw.choice((1, 2)))
        await walker.stripe("POST", "/v1/refunds", payment_intent=intent["id"], amount=amount)


async def write_a_credit_note(walker: Walker) -> None:
    """Credit a part of an invoice."""
    invoice = await walker.an_invoice("open", "paid")
    if invoice is not None and invoice["total"] > 1:
        amount = invoice["total"] // 2
        given = {"credit_amount": amount} if invoice["status"] == "paid" else {}
        await walker.stripe("POST", "/v1/credit_notes", invoice=invoice["id"], amount=amount, **given)


async def dispute_a_payment(walker: Walker) -> None:
    """Let the customer's bank dispute a payment."""
    invoice = await walker.an_invoice("paid")
    if invoice is not None and invoice["amount_paid"]:
        answer = await walker.ledger.world.sandbox.http.post("/_sandbox/disputes", json={"invoice": invoice["id"]})
        walker.note(f"POST /_sandbox/disputes {invoice['id']} {answer.status_code}")


async def give_a_coupon(walker: Walker) -> None:
    """Give a subscription a coupon."""
    path = await walker.path()
    if path is not None:
        coupon = await walker.stripe("POST", "/v1/coupons", percent_off=20, duration="forever")
        await walker.stripe("POST", path, **{"discounts[0][coupon]": coupon["id"]})


async def end_a_coupon(walker: Walker) -> None:
    """End a subscription's discount."""
    found = await walker.a_subscription()
    if found is not None and found["discounts"]:
        await walker.stripe("DELETE", f"{SUBSCRIPTIONS}/{found['id']}/discount")


async def give_the_customer_a_coupon(walker: Walker) -> None:
    """Give the customer a discount, or end it."""
    customer = await walker.customer()
    if customer is not None:
        coupon = await walker.stripe("POST", "/v1/coupons", amount_off=150, currency="usd", duration="once")
        body = walker.draw.choice(({"customer": customer, "coupon": coupon["id"]}, {"customer": customer}))
        await walker.control("POST", "discounts", body)


ACTS: tuple[tuple[Act, int], ...] = (
    (void_an_invoice, 2),
    (give_an_invoice_up, 2),
    (note_a_payment, 1),
    (finalize_a_draft, 1),
    (delete_a_draft, 1),
    (delete_a_late_item, 1),
    (leave_an_item_pending, 1),
    (refund_a_payment, 2),
    (write_a_credit_note, 2),
    (dispute_a_payment, 1),
    (give_a_coupon, 1),
    (end_a_coupon, 1),
    (give_the_customer_a_coupon, 1),
)
