"""Answers requests about subscriptions. The billing periods are fields of their items."""

from typing import Any

from stripe_sandbox import errors
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import customers, payment_methods
from stripe_sandbox.invoices import charging, discounts, invoicing, lines, pending
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import (
    beginnings,
    endings,
    pauses,
    pending_updates,
    phases,
    prorations,
    subscription_items,
    trials,
)

FINAL_CHANGES = {"cancellation_details", "expand"}
"""The parameters that can be changed on a subscription that has ended."""


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/subscriptions."""
    return context.show(created(context, params), params)


def created(context: Context, params: forms.Params) -> Json:
    """Store a new subscription; its first invoice is charged now."""
    if "customer" not in params:
        raise errors.InvalidParameter("Missing required param: customer.", param="customer", code="parameter_missing")
    customer = customers.existing(context, params["customer"], param="customer")
    chosen = _lines(context, params.get("items", []))
    _check_offered(params, chosen[0].price["currency"])
    terms = beginnings.Terms(
        metadata=rules.merged_metadata({}, params.get("metadata")),
        description=params.get("description") or None,
        trial_end=trials.chosen_end(context, params),
        without_card=trials.without_card(params) or "create_invoice",
        anchor=_anchor(context, params),
        prorates=params.get("proration_behavior") != "none",
        default_payment_method=payment_methods.check_owner(
            context, customer["id"], params.get("default_payment_method")
        ),
        payment_behavior=_payment_behavior(params),
        discounts=params.get("discounts") or [],
    )
    subscription = beginnings.begin(context, customer, chosen, terms)
    if ending := endings.arranged(context, subscription, params):
        subscription = context.update(subscription, ending, None)
    return subscription


def _check_offered(params: forms.Params, currency: str) -> None:
    """Raise InvalidParameter for billing that the sandbox does not support, Refused for another currency."""
    if params.get("currency", currency).lower() != currency:
        raise errors.Refused(f"The prices are in {currency}.", param="currency")
    for param, given, offered in (
        ("collection_method", params.get("collection_method"), "charge_automatically"),
        ("billing_mode[type]", params.get("billing_mode", {}).get("type"), "flexible"),
    ):
        if given not in {None, offered}:
            raise errors.InvalidParameter(
                f"The sandbox knows {param}={offered} only.", param=param, code="sandbox_unsupported"
            )


def _lines(context: Context, given: list[forms.Params]) -> list[subscription_items.Line]:
    chosen = []
    for index, each in enumerate(given):
        if "price" not in each:
            param = f"items[{index}][price]"
            raise errors.InvalidParameter(f"Missing required param: {param}.", param=param, code="parameter_missing")
        line = subscription_items.checked_line(context, each, f"items[{index}]")
        if not line.price["recurring"]:
            raise errors.Refused("The price is not recurring.", param=f"items[{index}][price]")
        chosen.append(line)
    if not chosen or len({line.price["id"] for line in chosen}) < len(chosen):
        raise errors.Refused("A subscription needs at least one item, and each price once only.", param="items")
    if len({line.price["currency"] for line in chosen}) > 1:
        raise errors.Refused("All prices of a subscription must have the same currency.", param="items")
    return chosen


def _anchor(context: Context, params: forms.Params) -> int | None:
    anchor: int | None = params.get("billing_cycle_anchor")
    if anchor is not None and anchor < context.now:
        raise errors.InvalidParameter("billing_cycle_anchor must lie in the future.", param="billing_cycle_anchor")
    return anchor


def _payment_behavior(params: forms.Params) -> str:
    behavior = str(params.get("payment_behavior", "allow_incomplete"))
    if behavior == pending_updates.BEHAVIOR and (other := params.keys() - pending_updates.SUPPORTED):
        param = min(other)
        raise errors.InvalidParameter(
            f"The parameter {param} cannot be used with payment_behavior={behavior}.", param=param
        )
    return behavior


def retrieve(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer GET /v1/subscriptions/{id}."""
    return context.show(context.work.get("subscription", subscription_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/subscriptions; without `status`, canceled subscriptions are left out."""
    where: dict[str, Any] = {"customer": params["customer"]} if "customer" in params else {}
    living_statuses = ["active", "incomplete", "past_due", "paused", "trialing", "unpaid", "incomplete_expired"]
    match params.get("status"):
        case "all":
            pass
        case "ended":
            where["status"] = list(endings.OVER)
        case None:
            where["status"] = living_statuses
        case status:
            where["status"] = status
    return context.show_list("subscription", "/v1/subscriptions", where, params)


def update(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer POST /v1/subscriptions/{id}."""
    subscription = context.work.get("subscription", subscription_id)
    return context.show(updated(context, subscription, params), params)


def updated(context: Context, subscription: Json, params: forms.Params) -> Json:
    """Change a subscription; the cost of the change is on the next invoice, or is charged now."""
    behavior = _payment_behavior(params)
    if subscription["status"] in endings.OVER and params.keys() - FINAL_CHANGES:
        raise errors.Refused("A canceled subscription can only update its cancellation_details.")
    if subscription["status"] == "incomplete" and params.keys() & {"items", "trial_end", "billing_cycle_anchor"}:
        raise errors.Refused("A subscription whose first invoice is not paid cannot change its items or periods.")
    changes = _plain_changes(context, subscription, params)
    parts: list[lines.Charge] = []
    whole: list[lines.Charge] = []
    resets = params.get("billing_cycle_anchor", {}).get("type") == "now"
    if "items" in params or resets:
        change = _change(context, subscription, params, resets=resets)
        discounted = {**subscription, "discounts": changes.get("discounts", subscription["discounts"])}
        outcome = subscription_items.changed(context, discounted, params.get("items", []), change)
        parts, whole = outcome.parts, outcome.whole
        changes |= {"billing_cycle_anchor": outcome.anchor, "items": _items(subscription, outcome.items)}
    if "trial_end" in params:
        moved = trials.moved(context, {**subscription, **changes}, params["trial_end"], prorates=_prorates(params))
        parts, whole = parts + moved.parts, whole + moved.whole
        changes |= moved.changes
        subscription = {**subscription, "_end_of_trial_announced": False}
    changes |= endings.arranged(context, {**subscription, **changes}, params)
    if params.get("cancel_at"):
        subscription = {**subscription, "_credits_at_end": _prorates(params)}
    if "items" in changes and subscription["schedule"]:
        phases.follow(context, subscription["schedule"], changes["items"]["data"])
    for part in parts:
        pending.add(context, subscription["customer"], part)
    at_once = bool(whole) or params.get("proration_behavior") == "always_invoice"
    owed = _owed(context, subscription, whole) if at_once and (whole or parts) else []
    return _applied(context, subscription, changes, owed, behavior)


def _owed(context: Context, subscription: Json, whole: list[lines.Charge]) -> list[lines.Charge]:
    waiting = pending.waiting(context, subscription["customer"], subscription["id"])
    return [*(pending.charge_of(context, item) for item in waiting), *whole]


def _applied(
    context: Context, subscription: Json, changes: Json, owed: list[lines.Charge], payment_behavior: str
) -> Json:
    """Store the change, and charge what is due now."""
    if not owed:
        return context.update(subscription, changes, "customer.subscription.updated")
    customer = context.work.get("customer", subscription["customer"])
    about = invoicing.Terms(
        reason="subscription_update", period=(context.now, context.now), subscription={**subscription, **changes}
    )
    invoice = invoicing.draft(context, customer, owed, about)
    changes = {**changes, "latest_invoice": invoice["id"]}
    unpaid = charging.collectable(invoice) and invoice["amount_due"] > 0 and charging.refusal(context, invoice)
    if payment_behavior == pending_updates.BEHAVIOR and unpaid:
        pending_updates.hold(context, subscription, changes, invoice)
        charging.finalise_and_collect_now(context, invoice)
        return context.work.get("subscription", subscription["id"])
    changed = context.update(subscription, changes, "customer.subscription.updated")
    if not charging.collectable(invoice):
        return changed
    invoice = invoicing.finalise(context, invoice)
    if payment_behavior != "default_incomplete" or invoice["amount_due"] == 0:
        invoice = charging.collect(context, invoice)
    waits = charging.waits_for_customer(invoice)
    if waits and payment_behavior == "error_if_incomplete":
        raise charging.refusal(context, invoice) or errors.CardDeclined()
    changed = context.work.get("subscription", changed["id"])
    if waits and changed["status"] == "active":
        changed = context.update(changed, {"status": "past_due"}, "customer.subscription.updated")
    return changed


def _plain_changes(context: Context, subscription: Json, params: forms.Params) -> Json:
    changes: Json = {
        "metadata": rules.merged_metadata(subscription["metadata"], params.get("metadata")),
        **pauses.collection(context, params),
    }
    if "description" in params:
        changes["description"] = params["description"] or None
    if params.get("discounts") or params.get("discounts") == "":
        changes["discounts"] = discounts.chosen(context, subscription, params["discounts"])
    if "default_payment_method" in params:
        changes["default_payment_method"] = payment_methods.check_owner(
            context, subscription["customer"], params["default_payment_method"]
        )
    if behavior := trials.without_card(params):
        changes["trial_settings"] = {"end_behavior": {"missing_payment_method": behavior}}
    if "cancellation_details" in params:
        given = {name: value or None for name, value in params["cancellation_details"].items()}
        changes["cancellation_details"] = {**subscription["cancellation_details"], **given}
    return changes


def _prorates(params: forms.Params) -> bool:
    return params.get("proration_behavior") != "none"


def _change(context: Context, subscription: Json, params: forms.Params, *, resets: bool) -> subscription_items.Change:
    at = params.get("proration_date", context.now)
    starts = [item["current_period_start"] for item in subscription["items"]["data"]]
    if not min(starts) <= at < max(endings.period_ends(subscription)):
        raise errors.InvalidParameter(
            "proration_date must lie within the current period of the subscription.", param="proration_date"
        )
    return subscription_items.Change(at=at, prorates=_prorates(params), resets=resets)


def _items(subscription: Json, data: list[Json]) -> Json:
    return {**subscription["items"], "data": data}


def cancel(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer DELETE /v1/subscriptions/{id}."""
    subscription = context.work.get("subscription", subscription_id)
    if subscription["status"] in endings.OVER:
        raise errors.NotFound(f"No such subscription: '{subscription_id}'", param="id", code="resource_missing")
    given = {name: value or None for name, value in params.get("cancellation_details", {}).items()}
    invoice_now, prorates = params.get("invoice_now", False), params.get("prorate", False)
    return context.show(canceled(context, subscription, given, invoice_now=invoice_now, prorates=prorates), params)


def canceled(context: Context, subscription: Json, details: Json, *, invoice_now: bool, prorates: bool) -> Json:
    """End a subscription at once. Its unbilled usage is charged only if `invoice_now`; otherwise it is lost."""
    items = subscription["items"]["data"]
    billed = subscription["status"] in {"active", "past_due", "unpaid"}
    if prorates and billed:
        for item in items:
            if not subscription_items.metered(item):
                for credit in prorations.credits_for(context.work, subscription, item, context.now):
                    pending.add(context, subscription["customer"], credit)
    owed: list[lines.Charge] = []
    if invoice_now and billed:
        used = [
            lines.used_until_now(context.work, subscription, each, context.now)
            for each in items
            if subscription_items.metered(each)
        ]
        owed = [charge for charge in used if charge.amount] + _owed(context, subscription, [])
    if not owed:
        return endings.end(context, subscription, details)
    customer = context.work.get("customer", subscription["customer"])
    since = min(item["current_period_start"] for item in items)
    about = invoicing.Terms(reason="subscription_update", period=(since, context.now), subscription=subscription)
    invoice = invoicing.draft(context, customer, owed, about)
    endings.end(context, {**subscription, "latest_invoice": invoice["id"]}, details)
    charging.finalise_and_collect_now(context, invoice)
    return context.work.get("subscription", subscription["id"])
