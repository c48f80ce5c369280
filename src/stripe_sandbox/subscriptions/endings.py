"""Ends subscriptions, and schedules or cancels their end."""

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.state import Json

OVER = ("canceled", "incomplete_expired")

SUBSCRIPTIONS_MAX = 500
"""Stripe's bound on the subscriptions of a customer."""


def living(context: Context, customer_id: str) -> list[Json]:
    """Return a customer's subscriptions that have not ended."""
    found, _ = context.work.select("subscription", {"customer": customer_id}, state.Page(SUBSCRIPTIONS_MAX))
    return [subscription for subscription in found if subscription["status"] not in OVER]


def end(context: Context, subscription: Json, details: Json | None = None) -> Json:
    """End a subscription now; its open invoices are not charged any more."""
    merged = {**subscription["cancellation_details"], "reason": "cancellation_requested", **(details or {})}
    changes = {
        "status": "canceled",
        "canceled_at": subscription["canceled_at"] or context.now,
        "cancel_at_period_end": False,
        "ended_at": context.now,
        "cancellation_details": merged,
        "schedule": None,
    }
    invoicing.stop_collecting(context, subscription["id"])
    if subscription["schedule"]:
        schedule = context.work.get("subscription_schedule", subscription["schedule"])
        over = {"status": "canceled", "canceled_at": context.now, "current_phase": None}
        context.emit("subscription_schedule.canceled", context.update(schedule, over, None))
    ended = context.update({**subscription, "_phase_end": None}, changes, None)
    context.emit("customer.subscription.deleted", ended)
    return ended


def expire(context: Context, subscription: Json) -> Json:
    """End a subscription whose first payment did not come in time, and void its invoice."""
    for_payment = context.work.find("invoice", subscription["latest_invoice"] or "")
    if for_payment and for_payment["status"] == "open":
        invoicing.void(context, for_payment)
    changes = {"status": "incomplete_expired", "ended_at": context.now}
    return context.update(subscription, changes, "customer.subscription.updated")


def cancel_at_end(context: Context, subscription: Json, details: Json | None = None) -> Json:
    """Schedule the end as the portal does: with flexible billing it sets `cancel_at`, not `cancel_at_period_end`."""
    merged = {**subscription["cancellation_details"], "reason": "cancellation_requested", **(details or {})}
    changes = {
        "cancel_at": min(period_ends(subscription)),
        "canceled_at": context.now,
        "cancellation_details": merged,
    }
    return context.update(subscription, changes, "customer.subscription.updated")


def keep(context: Context, subscription: Json) -> Json:
    """Cancel the scheduled end of a subscription."""
    return context.update(subscription, _kept(subscription), "customer.subscription.updated")


def _kept(subscription: Json) -> Json:
    return {
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {**subscription["cancellation_details"], "reason": None},
    }


def period_ends(subscription: Json) -> list[int]:
    """Return the ends of the periods of the subscription's items."""
    return [item["current_period_end"] for item in subscription["items"]["data"]]


def arranged(context: Context, subscription: Json, params: forms.Params) -> Json:
    """Return the changes that schedule or cancel an end, as the parameters ask. Raises InvalidParameter and Refused."""
    at_period_end, at = params.get("cancel_at_period_end"), params.get("cancel_at")
    if at_period_end is not None and at:
        raise errors.InvalidParameter(
            "You may only specify one of cancel_at and cancel_at_period_end.", param="cancel_at"
        )
    ends = period_ends(subscription)
    if at_period_end is None and at is None:
        if not subscription["cancel_at_period_end"]:
            return {}
        return {"cancel_at": min(ends)}  # this update may have changed the items' periods
    if subscription["schedule"]:
        raise errors.Refused(
            f"The subscription is managed by the subscription schedule `{subscription['schedule']}`; change its ending"
            " there, or release it first.",
            param="cancel_at_period_end" if at is None else "cancel_at",
        )
    if at_period_end:
        at = min(ends)
    if at in {None, ""}:
        return _kept(subscription)
    return {
        "cancel_at": _moment(context, at, ends),
        "cancel_at_period_end": bool(at_period_end),
        "canceled_at": subscription["canceled_at"] or context.now,
        "cancellation_details": {**subscription["cancellation_details"], "reason": "cancellation_requested"},
    }


def _moment(context: Context, at: int | str | None, ends: list[int]) -> int:
    match at:
        case "min_period_end":
            return min(ends)
        case "max_period_end":
            return max(ends)
        case int() if at <= context.now:
            raise errors.InvalidParameter("cancel_at must lie in the future.", param="cancel_at")
        case int():
            return at
        case _:
            raise errors.InvalidParameter(f"The sandbox does not know cancel_at={at}.", param="cancel_at")
