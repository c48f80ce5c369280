"""Subscriptions. Periods are on their items, as since API version 2025-03-31."""

import dataclasses
from typing import Any

from stripe_sandbox import errors, forms, rendering, rules, state, subscription_items
from stripe_sandbox.context import Context
from stripe_sandbox.state import Json

OVER = ("canceled", "incomplete_expired")
DAY_SECONDS = 24 * 3600
LIST_MAX = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """What a subscription begins with, beside its lines."""

    metadata: dict[str, str]
    description: str | None = None
    trial_end: int | None = None


def begin(context: Context, customer_id: str, lines: list[subscription_items.Line], terms: Terms) -> Json:
    """Make a subscription that is paid, or in its trial."""
    subscription_id = state.new_id("sub")
    trialing = terms.trial_end is not None and terms.trial_end > context.now
    anchor = terms.trial_end if trialing and terms.trial_end else context.now
    period = (context.now, terms.trial_end) if trialing else None
    subscription = {
        "id": subscription_id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": anchor,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible", "updated_at": None},
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": context.now,
        "currency": lines[0].price["currency"],
        "customer": customer_id,
        "days_until_due": None,
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": terms.description,
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": rendering.listed(
            [subscription_items.made(context, subscription_id, line, anchor, period) for line in lines],
            f"/v1/subscription_items?subscription={subscription_id}",
        ),
        "latest_invoice": None,
        "livemode": False,
        "metadata": terms.metadata,
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": context.now,
        "status": "trialing" if trialing else "active",
        "test_clock": None,
        "transfer_data": None,
        "trial_end": terms.trial_end if trialing else None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": context.now if trialing else None,
    }
    return context.work.insert("subscription", subscription)


def retrieve(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer GET /v1/subscriptions/{id}."""
    return context.show(context.work.get("subscription", subscription_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/subscriptions: those that are not canceled, unless a status is named."""
    where: dict[str, Any] = {"customer": params["customer"]} if "customer" in params else {}
    living_statuses = ["active", "incomplete", "past_due", "paused", "trialing", "unpaid", "incomplete_expired"]
    match params.get("status"):
        case "all":
            pass
        case "ended":
            where["status"] = list(OVER)
        case None:
            where["status"] = living_statuses
        case status:
            where["status"] = status
    return context.show_list("subscription", "/v1/subscriptions", where, params)


def living(context: Context, customer_id: str) -> list[Json]:
    """Give a customer's subscriptions that are not over."""
    found, _ = context.work.select("subscription", {"customer": customer_id}, state.Page(LIST_MAX))
    return [subscription for subscription in found if subscription["status"] not in OVER]


def update(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer POST /v1/subscriptions/{id}. Prorations are not invoiced yet."""
    subscription = context.work.get("subscription", subscription_id)
    if subscription["status"] in OVER and params.keys() - {"metadata", "cancellation_details", "expand"}:
        raise errors.Refused("A canceled subscription can only update its cancellation_details and metadata.")
    changes: Json = {"metadata": rules.merged_metadata(subscription["metadata"], params.get("metadata"))}
    if "description" in params:
        changes["description"] = params["description"] or None
    if "cancellation_details" in params:
        given = {name: value or None for name, value in params["cancellation_details"].items()}
        changes["cancellation_details"] = {**subscription["cancellation_details"], **given}
    if "items" in params:
        changes |= subscription_items.changed(context, subscription, params["items"])
    if "trial_end" in params:
        changes |= _changed_trial(context, subscription, params["trial_end"])
    changes |= _changed_ending(context, {**subscription, **changes}, params)
    return context.show(context.update(subscription, changes, "customer.subscription.updated"), params)


def _changed_ending(context: Context, subscription: Json, params: forms.Params) -> Json:
    """Say whether and when it will end: at a time, at the period's end, or not at all."""
    at_period_end, at = params.get("cancel_at_period_end"), params.get("cancel_at")
    if at_period_end is not None and at:
        raise errors.InvalidParameter(
            "You may only specify one of cancel_at and cancel_at_period_end.", param="cancel_at"
        )
    ends = [item["current_period_end"] for item in subscription["items"]["data"]]
    if at_period_end is None and at is None:
        if not subscription["cancel_at_period_end"]:
            return {}
        return {"cancel_at": min(ends)}  # the period may just have changed with the items
    if at_period_end:
        at = min(ends)
    match at:
        case None | "":
            reason = {**subscription["cancellation_details"], "reason": None}
            return {
                "cancel_at": None,
                "cancel_at_period_end": False,
                "canceled_at": None,
                "cancellation_details": reason,
            }
        case "min_period_end":
            at = min(ends)
        case "max_period_end":
            at = max(ends)
        case int() if at <= context.now:
            raise errors.InvalidParameter("cancel_at must lie in the future.", param="cancel_at")
        case int():
            pass
        case _:
            raise errors.InvalidParameter(f"The sandbox does not know cancel_at={at}.", param="cancel_at")
    return {
        "cancel_at": at,
        "cancel_at_period_end": bool(at_period_end),
        "canceled_at": subscription["canceled_at"] or context.now,
        "cancellation_details": {**subscription["cancellation_details"], "reason": "cancellation_requested"},
    }


def _changed_trial(context: Context, subscription: Json, given: int | str) -> Json:
    end = context.now if given == "now" else int(given)
    if end < context.now:
        raise errors.InvalidParameter("trial_end must lie in the future.", param="trial_end")
    trialing = end > context.now
    items = [
        {
            **item,
            "current_period_start": context.now,
            "current_period_end": end if trialing else subscription_items.next_end(context, item["price"], end),
        }
        for item in subscription["items"]["data"]
    ]
    return {
        "billing_cycle_anchor": end,
        "items": {**subscription["items"], "data": items},
        "status": "trialing" if trialing else "active",
        "trial_end": end,
        "trial_start": subscription["trial_start"] or context.now,
    }


def cancel(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer DELETE /v1/subscriptions/{id}: over at once. Usage that is not invoiced is not invoiced yet."""
    subscription = context.work.get("subscription", subscription_id)
    if subscription["status"] in OVER:
        raise errors.NotFound(f"No such subscription: '{subscription_id}'", param="id", code="resource_missing")
    given = {name: value or None for name, value in params.get("cancellation_details", {}).items()}
    return context.show(end(context, subscription, given), params)


def end(context: Context, subscription: Json, details: Json | None = None) -> Json:
    """End it now."""
    merged = {**subscription["cancellation_details"], "reason": "cancellation_requested", **(details or {})}
    changes = {
        "status": "canceled",
        "canceled_at": subscription["canceled_at"] or context.now,
        "cancel_at_period_end": False,
        "ended_at": context.now,
        "cancellation_details": merged,
    }
    ended = context.update(subscription, changes, None)
    context.emit("customer.subscription.deleted", ended)
    return ended
