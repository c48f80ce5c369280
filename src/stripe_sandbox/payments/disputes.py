"""Disputes: a customer's bank takes a payment back. The invoice stays paid, as with Stripe."""

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json

OPEN_STATUS = "needs_response"


def open_for(context: Context, charge: Json, amount: int | None, reason: str) -> Json:
    """Open a dispute about a charge; the bank takes the amount at once. Raises Refused if there is one already."""
    if charge["disputed"]:
        raise errors.Refused(f"The charge {charge['id']} is disputed already.")
    if amount is not None and not 0 < amount <= charge["amount"]:
        raise errors.Refused(f"A dispute's amount is between 1 and {charge['amount']}.", param="amount")
    dispute = {
        "id": state.new_id("du"),
        "object": "dispute",
        "amount": charge["amount"] if amount is None else amount,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": context.now,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {"due_by": None, "has_evidence": False, "past_due": False, "submission_count": 0},
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": reason,
        "status": OPEN_STATUS,
    }
    context.update(charge, {"disputed": True}, None)
    context.add("dispute", dispute, "charge.dispute.created")
    context.emit("charge.dispute.funds_withdrawn", dispute)
    return dispute


def decide(context: Context, dispute_id: str, status: str) -> Json:
    """Close a dispute as `won` or `lost`; a won dispute brings the money back. Raises Refused."""
    dispute = context.work.get("dispute", dispute_id)
    if dispute["status"] != OPEN_STATUS:
        raise errors.Refused(f"This dispute is {dispute['status']} already.", code="dispute_already_closed")
    closed = context.update(dispute, {"status": status}, None)
    context.emit("charge.dispute.closed", closed, {"status": OPEN_STATUS})
    if status == "won":
        context.emit("charge.dispute.funds_reinstated", closed)
    return closed


def close(context: Context, params: forms.Params, dispute_id: str) -> Json:
    """Answer POST /v1/disputes/{id}/close: the dispute is accepted, and so it is lost."""
    return context.show(decide(context, dispute_id, "lost"), params)


def retrieve(context: Context, params: forms.Params, dispute_id: str) -> Json:
    """Answer GET /v1/disputes/{id}."""
    return context.show(context.work.get("dispute", dispute_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/disputes."""
    where: Json = {name: params[name] for name in ("charge", "payment_intent") if name in params}
    return context.show_list("dispute", "/v1/disputes", where, params)
