"""Answers requests about invoices."""

from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import customers, payment_methods
from stripe_sandbox.invoices import charging, invoicing, pending, revisions
from stripe_sandbox.state import Json


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
    # A subscription's invoice takes that subscription's pending items; another invoice only if the request says so.
    includes = params.get("pending_invoice_items_behavior", "include" if subscription else "exclude") == "include"
    waiting = _waiting(context, customer, subscription) if includes else []
    if includes and not waiting:
        raise errors.Refused("Nothing to invoice for customer", code="invoice_no_customer_line_items")
    about = invoicing.Terms(
        reason="manual",
        period=(context.now, context.now),
        subscription=subscription,
        auto_advance=params.get("auto_advance", False),
        description=params.get("description"),
        metadata=rules.merged_metadata({}, params.get("metadata")),
        default_payment_method=payment_methods.check_owner(
            context, customer["id"], params.get("default_payment_method")
        ),
        currency=params["currency"].lower() if "currency" in params else None,
    )
    charges = [pending.charge_of(context, item) for item in waiting]
    return context.show(invoicing.draft(context, customer, charges, about), params)


def _waiting(context: Context, customer: Json, subscription: Json | None) -> list[Json]:
    """Return the pending items that name the subscription; without a subscription, those that name none."""
    found = pending.waiting(context, customer["id"], subscription["id"] if subscription else None)
    return [item for item in found if subscription is None or item["parent"]]


def add_lines(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer POST /v1/invoices/{id}/add_lines: puts pending items on a draft; the sandbox takes only these."""
    invoice = _in(context, invoice_id, "draft", "extended")
    items = []
    for index, line in enumerate(params["lines"]):
        param = f"lines[{index}][invoice_item]"
        if "invoice_item" not in line:
            raise errors.InvalidParameter(
                "The sandbox adds invoice items that exist only.", param=param, code="sandbox_unsupported"
            )
        item = context.work.get("invoiceitem", line["invoice_item"], param=param)
        if item["customer"] != invoice["customer"] or item["invoice"] is not None:
            raise errors.Refused("The invoice item must be the same customer's, and on no invoice yet.", param=param)
        if item["currency"] != invoice["currency"]:
            raise errors.Refused(f"The invoice is in {invoice['currency']}.", param=param)
        items.append(item)
    if len({item["id"] for item in items}) < len(items):
        raise errors.Refused("An invoice item can be added only once.", param="lines")
    return context.show(invoicing.extend(context, invoice, items), params)


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
    invoice = context.work.get("invoice", invoice_id)
    return rendering.render_inner(context.work, invoice, f"/v1/invoices/{invoice_id}/lines", params)


def update(context: Context, params: forms.Params, invoice_id: str) -> Json:
    """Answer POST /v1/invoices/{id}."""
    invoice = context.work.get("invoice", invoice_id)
    changes: Json = {"metadata": rules.merged_metadata(invoice["metadata"], params.get("metadata"))}
    if "description" in params:
        if invoice["status"] != "draft":
            raise errors.Refused("A finalized invoice cannot change its description.", param="description")
        changes["description"] = params["description"] or None
    if "default_payment_method" in params:
        changes["default_payment_method"] = payment_methods.check_owner(
            context, invoice["customer"], params["default_payment_method"]
        )
    if "auto_advance" in params:
        changes["auto_advance"] = params["auto_advance"]
        if invoice["status"] == "draft":
            at = invoice["automatically_finalizes_at"] or invoicing.final_at(context)
            changes["automatically_finalizes_at"] = at if params["auto_advance"] else None
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
    """Answer POST /v1/invoices/{id}/pay. Raises CardDeclined and NoCard."""
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
