"""Customers."""

import secrets

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings

FIELDS = ("email", "name", "description", "phone")


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/customers."""
    return context.show(add(context, params), params)


def add(context: Context, params: forms.Params) -> Json:
    """Store a new customer, for a request or for a checkout without a customer."""
    customer: Json = {
        "id": state.new_id("cus"),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": context.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "discount": None,
        "invoice_prefix": secrets.token_hex(4).upper(),
        "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None},
        "livemode": False,
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "next_invoice_sequence": 1,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
        **{name: params.get(name) or None for name in FIELDS},
    }
    return context.add("customer", customer, "customer.created")


def retrieve(context: Context, params: forms.Params, customer_id: str) -> Json:
    """Answer GET /v1/customers/{id}; a deleted customer is shown with `deleted`."""
    return context.show(context.work.get("customer", customer_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/customers."""
    where = {"email": params["email"]} if "email" in params else {}
    return context.show_list("customer", "/v1/customers", {**where, "deleted": None}, params)


def update(context: Context, params: forms.Params, customer_id: str) -> Json:
    """Answer POST /v1/customers/{id}."""
    customer = existing(context, customer_id)
    changes: Json = {name: params[name] or None for name in FIELDS if name in params}
    changes["metadata"] = rules.merged_metadata(customer["metadata"], params.get("metadata"))
    return context.show(context.update(customer, changes, "customer.updated"), params)


def delete(context: Context, params: forms.Params, customer_id: str) -> Json:
    """Answer DELETE /v1/customers/{id}: its subscriptions end at once, and none of its invoices is charged any more."""
    del params
    customer = existing(context, customer_id)
    for subscription in endings.living(context, customer_id):
        endings.end(context, subscription)
    invoicing.abandon(context, customer_id)
    payment_methods.remove(context, customer_id)
    context.emit("customer.deleted", customer)
    return context.work.replace({"id": customer_id, "object": "customer", "deleted": True})


def existing(context: Context, customer_id: str, *, param: str | None = None) -> Json:
    """Return a customer that is not deleted; raises as `Work.get` does."""
    customer = context.work.get("customer", customer_id, param=param)
    if customer.get("deleted"):
        message = f"No such customer: '{customer_id}'"
        raise (errors.Refused if param else errors.NotFound)(message, param=param or "id", code="resource_missing")
    return customer
