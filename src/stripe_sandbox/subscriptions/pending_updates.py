"""Pending updates: a change that takes effect when its invoice is paid, and is dropped if that takes too long."""

from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.state import Json
from stripe_sandbox.time import moments

BEHAVIOR = "pending_if_incomplete"

SUPPORTED = {
    "billing_cycle_anchor",
    "discounts",
    "expand",
    "items",
    "metadata",
    "payment_behavior",
    "proration_behavior",
    "proration_date",
    "trial_end",
}
"""The parameters that Stripe accepts in such an update."""

NEW = "billing_cycle_anchor", "discounts", "metadata", "trial_end"


def hold(context: Context, subscription: Json, changes: Json, invoice: Json) -> Json:
    """Store the changes until the invoice is paid; the subscription goes on as if nothing was asked."""
    ends = [item["current_period_end"] for item in subscription["items"]["data"]]
    if subscription["status"] == "trialing":
        ends.append(subscription["trial_end"])
    expires_at = min(context.now + moments.PENDING_UPDATE_SECONDS, *ends)
    shown = {name: changes.get(name) if changes.get(name) != subscription[name] else None for name in NEW}
    items = changes.get("items", {}).get("data")
    shown |= {"expires_at": expires_at, "subscription_items": items, "trial_from_plan": None}
    held = {"changes": changes, "expires_at": expires_at, "invoice": invoice["id"]}
    now = {"latest_invoice": invoice["id"], "pending_update": shown}
    stored = {**subscription, "_pending_update": held}
    return context.update(stored, now, "customer.subscription.updated")


def of(subscription: Json, invoice: Json) -> Json | None:
    """Return the pending update that waits for an invoice; None if there is none."""
    held: Json | None = subscription.get("_pending_update")
    return held if held and held["invoice"] == invoice["id"] else None


def apply(context: Context, subscription: Json) -> Json:
    """Make the pending change, since its invoice is paid."""
    changes = {**subscription["_pending_update"]["changes"], "pending_update": None}
    changes["metadata"] = {**subscription["metadata"], **changes["metadata"]}
    applied = context.update({**subscription, "_pending_update": None}, changes, "customer.subscription.updated")
    context.emit("customer.subscription.pending_update_applied", applied)
    return applied


def drop_if_over(context: Context, subscription: Json) -> Json:
    """Drop a pending update whose time is over, and void its invoice."""
    held = subscription.get("_pending_update")
    if held is None or held["expires_at"] > context.now:
        return subscription
    invoice = context.work.get("invoice", held["invoice"])
    if invoice["status"] == "open":
        invoicing.void(context, invoice)
    dropped = context.update(
        {**subscription, "_pending_update": None}, {"pending_update": None}, "customer.subscription.updated"
    )
    context.emit("customer.subscription.pending_update_expired", dropped)
    return dropped
