"""Refunds of charges. A refund changes the charge and nothing else: its invoice stays paid, as with Stripe."""

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/refunds: of a charge or payment intent, in whole or in part."""
    charge = _charge(context, params)
    metadata = rules.merged_metadata({}, params.get("metadata"))
    return context.show(refund(context, charge, params.get("amount"), params.get("reason"), metadata), params)


def _charge(context: Context, params: forms.Params) -> Json:
    if ("charge" in params) == ("payment_intent" in params):
        raise errors.InvalidParameter("Give either charge or payment_intent.", param="payment_intent")
    if "charge" in params:
        return context.work.get("charge", params["charge"], param="charge")
    intent = context.work.get("payment_intent", params["payment_intent"], param="payment_intent")
    if intent["latest_charge"] is None:
        raise errors.Refused("This payment intent does not have a successful charge to refund.", param="payment_intent")
    return context.work.get("charge", intent["latest_charge"])


def refund(context: Context, charge: Json, amount: int | None, reason: str | None, metadata: dict[str, str]) -> Json:
    """Refund an amount of a charge; None: all that is left. Raises Refused."""
    left = charge["amount"] - charge["amount_refunded"]
    if not left:
        raise errors.Refused(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    amount = left if amount is None else amount
    if not 0 < amount <= left:
        raise errors.Refused(f"Refund amount ({amount}) must be between 1 and {left}.", param="amount")
    made = {
        "id": state.new_id("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": None,
        "charge": charge["id"],
        "created": context.now,
        "currency": charge["currency"],
        "metadata": metadata,
        "payment_intent": charge["payment_intent"],
        "reason": reason,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }
    refunded = charge["amount_refunded"] + amount
    changes = {"amount_refunded": refunded, "refunded": refunded == charge["amount"]}
    context.add("refund", made, "refund.created")
    context.update(charge, changes, "charge.refunded")
    return made


def retrieve(context: Context, params: forms.Params, refund_id: str) -> Json:
    """Answer GET /v1/refunds/{id}."""
    return context.show(context.work.get("refund", refund_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/refunds."""
    where: Json = {name: params[name] for name in ("charge", "payment_intent") if name in params}
    return context.show_list("refund", "/v1/refunds", where, params)
