"""Answers requests about invoice items: charges for a customer's next invoice."""

from typing import Any

from stripe_sandbox import errors
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import customers
from stripe_sandbox.invoices import amounts, invoicing, lines, pending
from stripe_sandbox.state import Json

AMOUNT_MAX = 99_999_999
"""Stripe's bound on an amount, in minor units."""


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/invoiceitems; an amount below zero is a credit."""
    customer = customers.existing(context, _required(params, "customer"), param="customer")
    subscription = _subscription(context, params, customer)
    draft = _draft(context, params, customer)
    price = _price(context, params)
    quantity = params.get("quantity", 1)
    if ("amount" in params) == (price is not None):
        raise errors.InvalidParameter("Give either amount or pricing[price].", param="amount")
    amount = amounts.of_units(price["unit_amount_decimal"], quantity) if price else params["amount"]
    if not -AMOUNT_MAX <= amount <= AMOUNT_MAX:
        raise errors.InvalidParameter(f"Amounts go up to {AMOUNT_MAX}.", param="amount")
    currency = price["currency"] if price else _required(params, "currency").lower()
    if subscription and subscription["currency"] != currency:
        raise errors.Refused(f"The subscription is in {subscription['currency']}.", param="currency")
    period = params.get("period", {"start": context.now, "end": context.now})
    if period["start"] > period["end"]:
        raise errors.InvalidParameter("A period's end cannot be before its start.", param="period[end]")
    charge = lines.Charge(
        amount=amount,
        currency=currency,
        start=period["start"],
        end=period["end"],
        quantity=quantity,
        description=params.get("description") or (lines.named(context.work, price) if price else None),
        price=price,
        subscription=subscription["id"] if subscription else None,
        metadata=rules.merged_metadata({}, params.get("metadata")),
    )
    made = pending.add(context, customer["id"], charge)
    if draft:
        invoicing.extend(context, draft, [made])
        made = context.work.get("invoiceitem", made["id"])
    return context.show(made, params)


def _required(params: forms.Params, name: str) -> str:
    if name not in params:
        raise errors.InvalidParameter(f"Missing required param: {name}.", param=name, code="parameter_missing")
    return str(params[name])


def _subscription(context: Context, params: forms.Params, customer: Json) -> Json | None:
    if "subscription" not in params:
        return None
    found = context.work.get("subscription", params["subscription"], param="subscription")
    if found["customer"] != customer["id"]:
        raise errors.Refused("The subscription is another customer's.", param="subscription")
    if found["status"] in {"canceled", "incomplete_expired"}:
        raise errors.Refused("Nothing can be added to a subscription that is canceled.", param="subscription")
    return found


def _draft(context: Context, params: forms.Params, customer: Json) -> Json | None:
    if "invoice" not in params:
        return None
    found = context.work.get("invoice", params["invoice"], param="invoice")
    if found["customer"] != customer["id"] or found["status"] != "draft":
        raise errors.Refused("The invoice must be a draft of the same customer.", param="invoice")
    return found


def _price(context: Context, params: forms.Params) -> Json | None:
    if "price" not in params.get("pricing", {}):
        return None
    found = context.work.get("price", params["pricing"]["price"], param="pricing[price]")
    if found["recurring"]:
        raise errors.Refused("The price is recurring; an invoice item takes a one-time price.", param="pricing[price]")
    return found


def retrieve(context: Context, params: forms.Params, item_id: str) -> Json:
    """Answer GET /v1/invoiceitems/{id}."""
    return context.show(context.work.get("invoiceitem", item_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/invoiceitems; `pending` selects items that are on no invoice yet."""
    where: dict[str, Any] = {name: params[name] for name in ("customer", "invoice") if name in params}
    if params.get("pending"):
        where["invoice"] = None
    return context.show_list("invoiceitem", "/v1/invoiceitems", where, params)


def delete(context: Context, params: forms.Params, item_id: str) -> Json:
    """Answer DELETE /v1/invoiceitems/{id}, for an item that is on no invoice, or on a draft."""
    del params
    item = context.work.get("invoiceitem", item_id)
    if draft := _changeable_draft(context, item):
        invoicing.with_item(context, draft, item_id, None)
    return pending.delete(context, item)


def update(context: Context, params: forms.Params, item_id: str) -> Json:
    """Answer POST /v1/invoiceitems/{id}, for an item that is on no invoice, or on a draft."""
    item = context.work.get("invoiceitem", item_id)
    draft = _changeable_draft(context, item)
    changes: Json = {"metadata": rules.merged_metadata(item["metadata"], params.get("metadata"))}
    if "description" in params:
        changes["description"] = params["description"]
    if "amount" in params:
        if item["pricing"]["price_details"]:
            raise errors.Refused("The item has a price; its amount cannot be changed.", param="amount")
        if abs(params["amount"]) > AMOUNT_MAX:
            raise errors.InvalidParameter(f"Amounts go up to {AMOUNT_MAX}.", param="amount")
        amount = params["amount"]
        changes |= {"amount": amount, "net_amount": amount, "pricing": lines.pricing(None, amount)}
    changed = context.update(item, changes, None)
    if draft:
        invoicing.with_item(context, draft, item_id, changed)
    return context.show(changed, params)


def _changeable_draft(context: Context, item: Json) -> Json | None:
    """Return the draft with an item; None if the item is pending. Raises Refused if the invoice is final."""
    if item["invoice"] is None:
        return None
    invoice = context.work.get("invoice", item["invoice"])
    if invoice["status"] != "draft":
        raise errors.Refused("The invoice item is on an invoice that is not a draft; it cannot be changed or deleted.")
    return invoice
