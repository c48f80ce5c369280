"""Answers requests about invoices."""

from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import customers
from stripe_sandbox.invoices import charging, invoicing, pending, revisions
from stripe_sandbox.state import Json

LINES_DEFAULT = 10
LINES_MAX = 100


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/invoices: a draft, with the customer's pending items if the request asks for them."""
    if "from_invoice" in params:
        return context.show(revisions.create(context, params), params)
    if "customer" not in params:
        raise errors.InvalidParameter("Missing required param: customer.", param="customer", code="parameter_missing")
    customer = customers.existing(context, params["customer"], param="customer")
    subscription = None
    if "subscription" in params:
        subscription = context.work.get("subscription", params["subscription"], param="subscription")
        if subscription["customer"] != customer["id"]:
            raise errors.Refused("The subscription is another customer's.", param="subscription")
    if params.get("collection_method", "charge_automatically") != "charge_automatically":
        raise errors.InvalidParameter(
            "The sandbox charges automatically only.", param="collection_method", code="sandbox_unsupported"
        )
    # A subscription's invoice always takes its pending items; another invoice only if the request says so.
    includes = params.get("pending_invoice_items_behavior", "include" if subscription else "exclude") == "include"
    waiting = pending.waiting(context, customer["id"], subscription["id"] if subscription else None) if includes else []
    if includes and not waiting:
        raise errors.Refused("Nothing to invoice for customer", code="invoice_no_customer_line_items")
    about = invoicing.Terms(
        reason="manual",
        period=(context.now, context.now),
        subscription=subscription,
        auto_advance=params.get("auto_advance", False),
        description=params.get("description"),
        metadata=rules.merged_metadata({}, params.get("metadata")),
    )
    charges = [pending.charge_of(context, item) for item in waiting]
    return context.show(invoicing.draft(context, customer, charges, about), params)


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


def list_lines(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer GET /v1/invoices/{id}/lines."""
    data = rendering.render(context.work, context.work.get("invoice", invoice_id))["lines"]["data"]
    limit = params.get("limit", LINES_DEFAULT)
    if not 1 <= limit <= LINES_MAX:
        raise errors.InvalidParameter(f"limit must be between 1 and {LINES_MAX}.", param="limit")
    ids = [line["id"] for line in data]
    if params.get("starting_after"):
        if params["starting_after"] not in ids:
            raise errors.Refused("No such line item.", param="starting_after", code="resource_missing")
        data = data[ids.index(params["starting_after"]) + 1 :]
    return {**rendering.listed(data[:limit], f"/v1/invoices/{invoice_id}/lines"), "has_more": len(data) > limit}


def update(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer POST /v1/invoices/{id}."""
    invoice = context.work.get("invoice", invoice_id)
    changes: Json = {"metadata": rules.merged_metadata(invoice["metadata"], params.get("metadata"))}
    if "description" in params:
        if invoice["status"] != "draft":
            raise errors.Refused("A finalized invoice cannot change its description.", param="description")
        changes["description"] = params["description"] or None
    if "auto_advance" in params:
        changes["auto_advance"] = params["auto_advance"]
        if invoice["status"] == "draft":
            at = context.now + invoicing.FINALIZES_SECONDS if params["auto_advance"] else None
            changes["automatically_finalizes_at"] = invoice["automatically_finalizes_at"] or at
    return context.show(context.update(invoice, changes, "invoice.updated"), params)


def finalize(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer POST /v1/invoices/{id}/finalize. Charges it at once if it has `auto_advance`, or if nothing is due."""
    invoice = _in(context, invoice_id, "draft", "finalized")
    if "auto_advance" in params:
        invoice = context.work.replace({**invoice, "auto_advance": params["auto_advance"]})
    final = invoicing.finalise(context, invoice)
    if final["auto_advance"] or final["amount_due"] == 0:
        final = charging.collect(context, final)
    return context.show(final, params)


def pay(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer POST /v1/invoices/{id}/pay. Raises CardDeclined."""
    invoice = context.work.get("invoice", invoice_id)
    if invoice["status"] == "paid":
        raise errors.Refused("Invoice is already paid", code="invoice_already_paid")
    if invoice["status"] == "void":
        raise errors.Refused("Invoice is void", code="invoice_not_payable")
    if invoice["status"] == "draft":
        invoice = invoicing.finalise(context, invoice)
    if params.get("paid_out_of_band"):
        return context.show(charging.settle(context, invoice, outside_stripe=True), params)
    return context.show(charging.pay(context, invoice), params)


def void(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer POST /v1/invoices/{id}/void."""
    return context.show(invoicing.void(context, _in(context, invoice_id, "open", "voided", "uncollectible")), params)


def mark_uncollectible(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer POST /v1/invoices/{id}/mark_uncollectible."""
    invoice = _in(context, invoice_id, "open", "marked as uncollectible")
    return context.show(charging.mark_uncollectible(context, invoice), params)


def delete(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer DELETE /v1/invoices/{id}, for a draft that no subscription made. Its items are pending again."""
    del params
    invoice = _in(context, invoice_id, "draft", "deleted")
    if invoice["billing_reason"] != "manual":
        raise errors.Refused("You can only delete draft invoices that were not made by a subscription.")
    items, _ = context.work.select("invoiceitem", {"invoice": invoice_id}, state.Page(pending.PENDING_MAX))
    for item in items:
        pending.on_invoice(context, item["id"], None)
    context.emit("invoice.deleted", invoice)
    context.work.delete(invoice_id)
    return {"id": invoice_id, "object": "invoice", "deleted": True}


def _in(context: Context, invoice_id: str, status: str, done: str, or_status: str = "") -> Json:
    invoice = context.work.get("invoice", invoice_id)
    if invoice["status"] not in {status, or_status}:
        raise errors.Refused(f"Only an invoice that is {status} can be {done}; this one is {invoice['status']}.")
    return invoice
