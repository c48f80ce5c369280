"""Invoices. So far only the one that a paid checkout makes."""

import decimal
from typing import Any

from stripe_sandbox import forms, rendering, state, subscription_items
from stripe_sandbox.context import Context
from stripe_sandbox.state import Json


def line_amount(line: subscription_items.Line) -> int:
    """Give what a line costs in advance, in minor units: metered ones nothing yet."""
    exact = decimal.Decimal(line.price["unit_amount_decimal"]) * (line.quantity or 0)
    return int(exact.quantize(decimal.Decimal(1), rounding=decimal.ROUND_HALF_UP))


def paid(context: Context, subscription: Json, customer: Json, lines: list[subscription_items.Line]) -> Json:
    """Make the invoice that a checkout pays, and tell of it as Stripe does. In a trial it is about nothing."""
    trialing = subscription["status"] == "trialing"
    invoice_id = state.new_id("in")
    shown = [_line(invoice_id, subscription, line, 0 if trialing else line_amount(line)) for line in lines]
    total = sum(line["amount"] for line in shown)
    parent = {
        "quote_details": None,
        "subscription_details": {"metadata": subscription["metadata"], "subscription": subscription["id"]},
        "type": "subscription_details",
    }
    transitions = {"finalized_at": context.now, "marked_uncollectible_at": None, "paid_at": None, "voided_at": None}
    invoice = {
        "id": invoice_id,
        "object": "invoice",
        "amount_due": total,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": total,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None, "status": None},
        "billing_reason": "subscription_create",
        "collection_method": "charge_automatically",
        "created": context.now,
        "currency": subscription["currency"],
        "customer": customer["id"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": context.now,
        "ending_balance": 0,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "lines": rendering.listed(shown, f"/v1/invoices/{invoice_id}/lines"),
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": invoice_id.upper()[-12:] + "-0001",
        "parent": parent,
        "period_end": context.now,
        "period_start": context.now,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status": "open",
        "status_transitions": transitions,
        "subtotal": total,
        "total": total,
    }
    context.add("invoice", {**invoice, "status": "draft"}, "invoice.created")
    context.work.replace(invoice)
    context.emit("invoice.finalized", invoice)
    changes = {
        "amount_paid": total,
        "amount_remaining": 0,
        "attempt_count": 1 if total else 0,
        "attempted": True,
        "status": "paid",
        "status_transitions": {**transitions, "paid_at": context.now},
    }
    settled = context.update(invoice, changes, None)
    context.emit("invoice.paid", settled)
    context.emit("invoice.payment_succeeded", settled)
    return settled


def _line(invoice_id: str, subscription: Json, line: subscription_items.Line, amount: int) -> Json:
    items = {item["price"]: item for item in subscription["items"]["data"]}
    item = items.get(line.price["id"])
    start = item["current_period_start"] if item else subscription["created"]
    end = item["current_period_end"] if item else subscription["created"]
    return {
        "id": state.new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": line.price["currency"],
        "description": line.price["nickname"],
        "discountable": True,
        "discounts": [],
        "invoice": invoice_id,
        "livemode": False,
        "metadata": {},
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "subscription": subscription["id"],
                "subscription_item": item["id"] if item else None,
            },
            "type": "subscription_item_details",
        },
        "period": {"end": end, "start": start},
        "pricing": {
            "price_details": {"price": line.price["id"], "product": line.price["product"]},
            "type": "price_details",
            "unit_amount_decimal": line.price["unit_amount_decimal"],
        },
        "quantity": line.quantity or 0,
        "subtotal": amount,
        "taxes": [],
    }


def retrieve(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer GET /v1/invoices/{id}."""
    return context.show(context.work.get("invoice", invoice_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/invoices."""
    where: dict[str, Any] = {
        name: params[name] for name in ("customer", "status", "collection_method") if name in params
    }
    if "subscription" in params:
        where["parent.subscription_details.subscription"] = params["subscription"]
    return context.show_list("invoice", "/v1/invoices", where, params)
