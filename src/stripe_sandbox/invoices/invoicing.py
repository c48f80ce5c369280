"""Creates, updates, finalises and voids invoices; `charging` charges them."""

import dataclasses

from stripe_sandbox import errors, state
from stripe_sandbox.api import rendering
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import discounts, invoice_limits, lines, pending, totals
from stripe_sandbox.payments import payments
from stripe_sandbox.state import Json

UNPAID_MAX = 500
"""The most drafts and open invoices of a customer; far more than any test makes."""

FAILS = "drafts_fail"
"""The stored fact that is 1 while no draft can become final."""

FINALIZATION_ERROR = {
    "code": "customer_tax_location_invalid",
    "message": "The customer's location isn't recognized, so the tax cannot be calculated. Set a valid address.",
    "type": "invalid_request_error",
}
"""The reason why a draft cannot become final: the most frequent of Stripe's reasons."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The fields of a new invoice beside its lines."""

    reason: str
    period: tuple[int, int]
    subscription: Json | None = None
    auto_advance: bool = True
    description: str | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    from_invoice: Json | None = None
    """The invoice that this invoice revises."""

    default_payment_method: str | None = None
    currency: str | None = None


def final_at(context: Context) -> int:
    """Return when a draft that is created or released now becomes final; until then new usage still counts on it."""
    return context.now + context.delay_seconds("drafts")


def draft(context: Context, customer: Json, charges: list[lines.Charge], terms: Terms) -> Json:
    """Store a draft; the pending items among the charges belong to it from now on. Raises TooMany."""
    if terms.subscription and terms.reason != "subscription_cycle":  # a renewal is never refused
        invoice_limits.check(context, terms.subscription["id"])
    invoice_id = state.new_id("in")
    auto_advance = terms.auto_advance and _pause_behavior(terms) != "keep_as_draft"
    invoice = {
        "id": invoice_id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Sandbox",
        "account_tax_ids": None,
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": auto_advance,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None, "status": None},
        "automatically_finalizes_at": final_at(context) if auto_advance else None,
        "billing_reason": terms.reason,
        "collection_method": "charge_automatically",
        "created": context.now,
        "currency": charges[0].currency if charges else terms.currency or _currency(customer, terms.subscription),
        "custom_fields": None,
        "customer": customer["id"],
        "customer_account": None,
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": customer["phone"],
        "default_payment_method": terms.default_payment_method,
        "default_source": None,
        "default_tax_rates": [],
        "description": terms.description,
        "discounts": _discounts(context, customer, terms),
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": terms.from_invoice,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": rendering.listed(
            [lines.shown(charge, invoice_id) for charge in charges], f"/v1/invoices/{invoice_id}/lines"
        ),
        "livemode": False,
        "metadata": terms.metadata,
        "next_payment_attempt": final_at(context) if auto_advance else None,
        "number": None,
        "on_behalf_of": None,
        "parent": _parent(terms.subscription),
        "payments": rendering.listed([], f"/v1/invoice_payments?invoice={invoice_id}"),
        "period_end": terms.period[1],
        "period_start": terms.period[0],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "starting_balance": customer["balance"],
        "statement_descriptor": None,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "test_clock": None,
        "total": 0,
        "total_discount_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": None,
        "_fails": False,
    }
    _take(context, invoice_id, charges)
    invoice |= totals.counted(context.work, invoice, invoice["lines"]["data"])
    made = context.add("invoice", invoice, "invoice.created")
    discounts.use_up(context, made["discounts"])
    return _set_aside(context, made, terms)


def _discounts(context: Context, customer: Json, terms: Terms) -> list[str]:
    """Return the ids of the discounts in force; a manual invoice has those of the customer only."""
    subscription = None if terms.reason == "manual" else terms.subscription
    return [each["id"] for each in discounts.of(context.work, subscription, customer, context.now)]


def _pause_behavior(terms: Terms) -> str | None:
    """Return what the pause of the subscription's collection does to a new invoice; None without a pause."""
    if terms.subscription is None or terms.reason == "manual":
        return None
    return (terms.subscription["pause_collection"] or {}).get("behavior")


def _set_aside(context: Context, invoice: Json, terms: Terms) -> Json:
    """Void a new invoice or mark it as uncollectible at once, if the pause of the collection says so."""
    match _pause_behavior(terms):
        case "void":
            return void(context, finalise(context, invoice))
        case "mark_uncollectible":
            return mark_uncollectible(context, finalise(context, invoice))
        case _:
            return invoice


def _parent(subscription: Json | None) -> Json | None:
    if subscription is None:
        return None
    details = {"metadata": subscription["metadata"], "subscription": subscription["id"]}
    return {"quote_details": None, "subscription_details": details, "type": "subscription_details"}


def _currency(customer: Json, subscription: Json | None) -> str:
    return str(subscription["currency"] if subscription else customer["currency"] or "usd")


def _take(context: Context, invoice_id: str, charges: list[lines.Charge]) -> None:
    for charge in charges:
        if charge.invoice_item:
            pending.on_invoice(context, charge.invoice_item, invoice_id)


def extend(context: Context, invoice: Json, items: list[Json]) -> Json:
    """Add pending items to a draft."""
    charges = [pending.charge_of(context, item) for item in items]
    _take(context, invoice["id"], charges)
    added = [lines.shown(charge, invoice["id"]) for charge in charges]
    return _with_lines(context, invoice, [*invoice["lines"]["data"], *added], "invoice.updated")


def with_item(context: Context, invoice: Json, item_id: str, item: Json | None) -> Json:
    """Show an invoice item's present state on a draft; None: the item is not on the draft any more."""
    data = []
    for line in invoice["lines"]["data"]:
        if lines.invoice_item_of(line) != item_id:
            data.append(line)
        elif item is not None:
            data.append({**lines.shown(pending.charge_of(context, item), invoice["id"]), "id": line["id"]})
    return _with_lines(context, invoice, data, "invoice.updated")


def counted_again(context: Context, invoice: Json) -> Json:
    """Count the usage on a draft again."""
    counted = [lines.counted_again(context.work, line, invoice["customer"]) for line in invoice["lines"]["data"]]
    return _with_lines(context, invoice, counted, None)


def _with_lines(context: Context, invoice: Json, data: list[Json], event_type: str | None) -> Json:
    return context.update(invoice, totals.counted(context.work, invoice, data), event_type)


def count_drafts_again(context: Context, customer_id: str) -> None:
    """Count the usage on all drafts of a customer again."""
    rows = context.work.connection.execute(
        "SELECT id FROM objects WHERE kind = 'invoice' AND json_extract(body, '$.customer') = ?"
        " AND json_extract(body, '$.status') = 'draft'",
        (customer_id,),
    ).fetchall()
    for (invoice_id,) in rows:
        counted_again(context, context.work.get("invoice", invoice_id))


def finalise(context: Context, invoice: Json) -> Json:
    """Finalise a draft: from now on only its payment changes. Raises Refused."""
    customer = context.work.get("customer", invoice["customer"])
    if customer.get("deleted"):
        raise errors.Refused("The customer of this invoice was deleted, so it cannot be finalized.")
    if cannot_finalise(context, invoice):
        raise errors.Refused(FINALIZATION_ERROR["message"], code=FINALIZATION_ERROR["code"])
    counted = counted_again(context, invoice)
    number = customer["next_invoice_sequence"]
    context.work.replace({**customer, "next_invoice_sequence": number + 1})
    balance = move_balance(context, invoice["customer"], counted["total"] - counted["amount_due"])
    address = f"{context.settings.public_url}/invoice/{invoice['id']}"
    changes = {
        "automatically_finalizes_at": None,
        "effective_at": context.now,
        "ending_balance": balance,
        "hosted_invoice_url": address,
        "last_finalization_error": None,
        "invoice_pdf": f"{address}/pdf",
        "next_payment_attempt": None,
        "number": f"{customer['invoice_prefix']}-{number:04}",
        "status": "open",
        "status_transitions": {**counted["status_transitions"], "finalized_at": context.now},
    }
    changes["payments"] = payments.begun(context, {**counted, **changes})
    final = context.update(counted, changes, None)
    context.emit("invoice.finalized", final)
    if final["from_invoice"]:
        revised = void(context, context.work.get("invoice", final["from_invoice"]["invoice"]))
        context.update(revised, {"latest_revision": final["id"]}, None)
    return final


def cannot_finalise(context: Context, invoice: Json) -> bool:
    """Say whether a control route has made the finalisation of a draft fail."""
    return bool(invoice["_fails"] or context.work.fact(FAILS))


def fail(context: Context, invoice: Json) -> Json:
    """Let the finalisation of a draft fail: it stays a draft until somebody finalises it by hand."""
    changes = {
        "automatically_finalizes_at": None,
        "last_finalization_error": FINALIZATION_ERROR,
        "next_payment_attempt": None,
    }
    failed = context.update(invoice, changes, None)
    context.emit("invoice.finalization_failed", failed)
    return failed


def schedule(context: Context, invoice: Json, seconds: int | None, *, fails: bool | None) -> Json:
    """Choose how long after its creation a draft becomes final, and whether that fails; None: as before."""
    changes: Json = {}
    if seconds is not None:
        at = max(invoice["created"] + seconds, context.now)
        changes = {"automatically_finalizes_at": at, "next_payment_attempt": at}
    private = {"_fails": invoice["_fails"] if fails is None else fails}
    return context.update(context.work.replace({**invoice, **private}), changes, "invoice.updated")


def move_balance(context: Context, customer_id: str, by: int) -> int:
    """Add `by` to the customer's balance (below zero: credit), and return the new balance."""
    customer = context.work.get("customer", customer_id)
    if customer.get("deleted"):
        return 0
    balance: int = customer["balance"] + by
    context.update(customer, {"balance": balance}, "customer.updated")
    return balance


def void(context: Context, invoice: Json) -> Json:
    """Void a finalised invoice: nothing is owed any more, and the customer gets back the credit that it used."""
    move_balance(context, invoice["customer"], invoice["amount_due"] - invoice["total"])
    changes = {
        "auto_advance": False,
        "next_payment_attempt": None,
        "status": "void",
        "status_transitions": {**invoice["status_transitions"], "voided_at": context.now},
    }
    payments.change(context, invoice, "canceled")
    voided = context.update(invoice, changes, None)
    context.emit("invoice.voided", voided)
    return voided


def mark_uncollectible(context: Context, invoice: Json) -> Json:
    """Mark a finalised invoice as uncollectible: it is not charged any more, but can still be paid or voided."""
    changes = {
        "auto_advance": False,
        "next_payment_attempt": None,
        "status": "uncollectible",
        "status_transitions": {**invoice["status_transitions"], "marked_uncollectible_at": context.now},
    }
    marked = context.update(invoice, changes, None)
    context.emit("invoice.marked_uncollectible", marked)
    return marked


def abandon(context: Context, customer_id: str) -> None:
    """Leave a deleted customer's invoices as they are: drafts never become final, open invoices are not charged."""
    found, _ = context.work.select(
        "invoice", {"customer": customer_id, "status": ["draft", "open"]}, state.Page(UNPAID_MAX)
    )
    for invoice in found:
        changes: Json = {"auto_advance": False, "automatically_finalizes_at": None, "next_payment_attempt": None}
        context.update(invoice, changes, "invoice.updated")


def stop_collecting(context: Context, subscription_id: str) -> None:
    """Stop finalising the earlier drafts, and charging the open invoices, of a subscription that has ended."""
    stopped = {"auto_advance": False, "automatically_finalizes_at": None, "next_payment_attempt": None}
    for status in ("draft", "open"):
        found, _ = context.work.select(
            "invoice", {"parent.subscription_details.subscription": subscription_id, "status": status}, state.Page(100)
        )
        for invoice in found:
            if status == "open" or invoice["created"] < context.now:  # the last invoice is made at the end
                context.update(invoice, stopped, "invoice.updated")
