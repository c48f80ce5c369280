"""An invoice's payment: the payment intent, which begins when the invoice is finalised, and its charge.

Their own events are not emitted: the invoice's events tell the same.
"""

from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json

SECRET_LENGTH = 16


def begun(context: Context, invoice: Json) -> Json:
    """Store the payment of a finalised invoice, and return the invoice's field `payments`."""
    url = f"/v1/invoice_payments?invoice={invoice['id']}"
    if invoice["amount_due"] <= 0:
        return rendering.listed([], url)
    intent_id = state.new_id("pi")
    shared = {"created": context.now, "currency": invoice["currency"], "livemode": False}
    intent = {
        **shared,
        "id": intent_id,
        "object": "payment_intent",
        "amount": invoice["amount_due"],
        "amount_received": 0,
        "canceled_at": None,
        "cancellation_reason": None,
        "client_secret": f"{intent_id}_secret_{state.new_id('')[1 : SECRET_LENGTH + 1]}",
        "customer": invoice["customer"],
        "description": invoice["description"],
        "last_payment_error": None,
        "latest_charge": None,
        "metadata": {},
        "next_action": None,
        "payment_method": None,
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
    }
    payment = {
        **shared,
        "id": state.new_id("inpay"),
        "object": "invoice_payment",
        "amount_paid": None,
        "amount_requested": invoice["amount_due"],
        "invoice": invoice["id"],
        "is_default": True,
        "payment": {"payment_intent": intent_id, "type": "payment_intent"},
        "status": "open",
        "status_transitions": {"canceled_at": None, "paid_at": None},
    }
    context.work.insert("payment_intent", intent)
    context.work.insert("invoice_payment", payment)
    return rendering.listed([payment["id"]], url)


def of(context: Context, invoice: Json) -> tuple[Json, Json] | None:
    """Return an invoice's payment and its intent; None if there is none."""
    ids = (invoice.get("payments") or {"data": []})["data"]
    if not ids:
        return None
    payment = context.work.get("invoice_payment", ids[0])
    return payment, context.work.get("payment_intent", payment["payment"]["payment_intent"])


def succeed(context: Context, invoice: Json, amount: int, method: Json | None) -> None:
    """Charge the amount, and mark the invoice's payment as paid."""
    found = of(context, invoice)
    if found is None:
        return
    payment, intent = found
    charge = _charge(context, intent, amount, method)
    changes = {
        "amount": amount,
        "amount_received": amount,
        "last_payment_error": None,
        "latest_charge": charge["id"],
        "next_action": None,
        "payment_method": method["id"] if method else None,
        "status": "succeeded",
    }
    context.update(intent, changes, None)
    paid = {
        "amount_paid": amount,
        "status": "paid",
        "status_transitions": {**payment["status_transitions"], "paid_at": context.now},
    }
    context.update(payment, paid, None)


def _charge(context: Context, intent: Json, amount: int, method: Json | None) -> Json:
    charge = {
        "id": state.new_id("ch"),
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "captured": True,
        "created": context.now,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "livemode": False,
        "metadata": {},
        "paid": True,
        "payment_intent": intent["id"],
        "payment_method": method["id"] if method else None,
        "refunded": False,
        "status": "succeeded",
    }
    return context.work.insert("charge", charge)


def change(context: Context, invoice: Json, status: str, error: Json | None = None) -> None:
    """Store that the payment waits: for another payment method, for the customer's bank, or for a debit."""
    found = of(context, invoice)
    if found is None:
        return
    action: Json | None = None
    if status == "requires_action":
        to = {"return_url": None, "url": invoice["hosted_invoice_url"]}
        action = {"redirect_to_url": to, "type": "redirect_to_url"}
    changes = {"last_payment_error": error, "next_action": action, "status": status}
    context.update(found[1], changes, None)
    if status == "canceled":
        over = {"canceled_at": context.now, "paid_at": None}
        context.update(found[0], {"status": "canceled", "status_transitions": over}, None)


def retrieve_intent(context: Context, params: forms.Params, intent_id: str) -> Json:
    """Answer GET /v1/payment_intents/{id}."""
    return context.show(context.work.get("payment_intent", intent_id), params)


def list_intents(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/payment_intents."""
    where = {"customer": params["customer"]} if "customer" in params else {}
    return context.show_list("payment_intent", "/v1/payment_intents", where, params)


def retrieve_charge(context: Context, params: forms.Params, charge_id: str) -> Json:
    """Answer GET /v1/charges/{id}."""
    return context.show(context.work.get("charge", charge_id), params)


def list_charges(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/charges."""
    where: Json = {name: params[name] for name in ("customer", "payment_intent") if name in params}
    return context.show_list("charge", "/v1/charges", where, params)


def retrieve(context: Context, params: forms.Params, payment_id: str) -> Json:
    """Answer GET /v1/invoice_payments/{id}."""
    return context.show(context.work.get("invoice_payment", payment_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/invoice_payments."""
    where: dict[str, Any] = {name: params[name] for name in ("invoice", "status") if name in params}
    if "payment_intent" in params.get("payment", {}):
        where["payment.payment_intent"] = params["payment"]["payment_intent"]
    return context.show_list("invoice_payment", "/v1/invoice_payments", where, params)


def charge_of(context: Context, invoice: Json) -> Json:
    """Return the charge that paid an invoice. Raises Refused if there is none."""
    found = of(context, invoice)
    if found is None or found[1]["latest_charge"] is None:
        raise errors.Refused("The invoice has no payment by Stripe.", param="invoice")
    return context.work.get("charge", found[1]["latest_charge"])
