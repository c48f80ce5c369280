"""The two pauses of a subscription: of the collection of its invoices, and of the subscription itself."""

from typing import Any

from stripe_sandbox import errors
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.state import Json


def collection(context: Context, params: forms.Params) -> Json:
    """Return the changes that pause or resume the collection, as an update asks. Raises InvalidParameter."""
    if "pause_collection" not in params:
        return {}
    given: Any = params["pause_collection"]
    if given == "":
        return {"pause_collection": None}
    resumes_at = given.get("resumes_at")
    if resumes_at is not None and resumes_at <= context.now:
        raise errors.InvalidParameter("resumes_at must lie in the future.", param="pause_collection[resumes_at]")
    return {"pause_collection": {"behavior": given["behavior"], "resumes_at": resumes_at}}


def collected_again(context: Context, subscription: Json) -> Json:
    """Resume the collection if its time has come; earlier invoices stay as the pause left them."""
    resumes_at = (subscription["pause_collection"] or {}).get("resumes_at")
    if resumes_at is None or resumes_at > context.now:
        return subscription
    return context.update(subscription, {"pause_collection": None}, "customer.subscription.updated")


def possible(subscription: Json) -> bool:
    """Say whether the subscription itself can be paused: not while a schedule manages it."""
    return subscription["schedule"] is None


def resumption_of(subscription: Json, invoice: Json) -> Json | None:
    """Return the resumption that waits for the payment of an invoice; None if there is none."""
    waiting: Json | None = subscription.get("_resumption")
    return waiting if waiting and waiting["invoice"] == invoice["id"] else None


def forget_resumption(context: Context, subscription: Json) -> None:
    """Void the invoice of a resumption that was not paid in time; the subscription stays paused."""
    waiting = subscription.get("_resumption")
    if waiting is None or waiting["expires_at"] is None or waiting["expires_at"] > context.now:
        return
    invoice = context.work.get("invoice", waiting["invoice"])
    if invoice["status"] == "open":
        invoicing.void(context, invoice)
    context.work.replace({**subscription, "_resumption": None})


def begin(context: Context, subscription: Json, reason: str) -> Json:
    """Pause the subscription itself: it makes no invoices and begins no periods until it is resumed."""
    details = {"subscription": {"type": reason}, "transitioned_at": context.now, "type": "subscription"}
    changes = {"status": "paused", "status_details": {"paused": details}}
    paused = context.update(subscription, changes, "customer.subscription.updated")
    context.emit("customer.subscription.paused", paused)
    return paused


def end(context: Context, subscription: Json, status: str = "active", changes: Json | None = None) -> Json:
    """Resume a paused subscription, with further changes if its periods begin anew."""
    over = {**(changes or {}), "status": status, "status_details": None}
    resumed = context.update({**subscription, "_resumption": None}, over, "customer.subscription.updated")
    context.emit("customer.subscription.resumed", resumed)
    return resumed
