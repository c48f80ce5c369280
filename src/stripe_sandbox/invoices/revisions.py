"""Revisions: a new draft that takes the place of an unpaid invoice when it is finalised."""

from stripe_sandbox import errors
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import invoicing, lines, pending
from stripe_sandbox.state import Json

GIVEN_BY_INVOICE = {"customer", "subscription", "currency", "pending_invoice_items_behavior"}


def create(context: Context, params: forms.Params) -> Json:
    """Return the draft of a revision. Raises Refused unless the invoice is one-off, final and not paid."""
    asked = params["from_invoice"]
    if taken := GIVEN_BY_INVOICE & params.keys():
        param = min(taken)
        raise errors.InvalidParameter("A revision takes this from the revised invoice.", param=param)
    before = context.work.get("invoice", asked["invoice"], param="from_invoice[invoice]")
    if before["parent"] is not None or before["status"] not in {"open", "uncollectible"}:
        raise errors.Refused(
            "Only a one-off invoice that is open or uncollectible can be revised.", param="from_invoice[invoice]"
        )
    customer = context.work.get("customer", before["customer"])
    items = [pending.add(context, customer["id"], _charge(context, line)) for line in before["lines"]["data"]]
    terms = invoicing.Terms(
        reason="manual",
        period=(before["period_start"], before["period_end"]),
        auto_advance=params.get("auto_advance", False),
        description=params.get("description", before["description"]),
        metadata=params.get("metadata") or before["metadata"],
        from_invoice={"action": asked["action"], "invoice": before["id"]},
    )
    return invoicing.draft(context, customer, [pending.charge_of(context, item) for item in items], terms)


def _charge(context: Context, line: Json) -> lines.Charge:
    details = line["pricing"]["price_details"]
    return lines.Charge(
        amount=line["amount"],
        currency=line["currency"],
        start=line["period"]["start"],
        end=line["period"]["end"],
        quantity=line["quantity"],
        description=line["description"],
        price=context.work.get("price", details["price"]) if details else None,
        metadata=line["metadata"],
    )
