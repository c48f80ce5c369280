"""Makes the changes of a subscription that are due: renewal, end of the trial, next phase, end."""

from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import discounts, invoicing, lines, pending
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import (
    beginnings,
    endings,
    pauses,
    pending_updates,
    periods,
    phases,
    prorations,
    subscription_items,
    subscriptions,
)
from stripe_sandbox.time import moments


def act(context: Context, subscription_id: str) -> None:
    """Make all changes of a subscription that are due."""
    subscription = context.work.get("subscription", subscription_id)
    if subscription["status"] == "incomplete":
        endings.expire(context, subscription)
        return
    subscription = pending_updates.drop_if_over(context, subscription)
    subscription = _announced(context, pauses.collected_again(context, subscription))
    phase = None
    if _reached(context, subscription["_phase_end"]):
        schedule = context.work.get("subscription_schedule", subscription["schedule"])
        phase = phases.enter_next(context, schedule)
        if phase is None and schedule["end_behavior"] == "cancel":
            subscription = {**subscription, "schedule": None}
            finish(context, context.work.replace(subscription))
            return
        ends = {"_phase_end": phase["end_date"] if phase else None}
        subscription = context.work.replace({**subscription, **ends})
        if phase is None:
            subscription = context.update(subscription, {"schedule": None}, "customer.subscription.updated")
    if _reached(context, subscription["cancel_at"]):
        finish(context, subscription)
        return
    if subscription["status"] == "paused":
        pauses.forget_resumption(context, subscription)
        return
    if any(_reached(context, item["current_period_end"]) for item in subscription["items"]["data"]):
        _renew(context, subscription, phase)
    elif phase:
        subscriptions.updated(context, subscription, _as_update(subscription, phase))


def _reached(context: Context, at: int | None) -> bool:
    return at is not None and at <= context.now


def _announced(context: Context, subscription: Json) -> Json:
    """Emit an event, only once, that the trial will end within three days."""
    if subscription["status"] != "trialing" or subscription["_end_of_trial_announced"]:
        return subscription
    if subscription["trial_end"] - moments.TRIAL_NOTICE_SECONDS > context.now:
        return subscription
    announced = context.work.replace({**subscription, "_end_of_trial_announced": True})
    context.emit("customer.subscription.trial_will_end", announced)
    return announced


def _as_update(subscription: Json, phase: Json) -> Json:
    """Return the parameters of an update that begins a phase in the middle of a period."""
    wanted = {item["price"]: item for item in phase["items"]}
    changes = []
    for item in subscription["items"]["data"]:
        into = wanted.pop(item["price"], None)
        if into is None:
            changes.append({"id": item["id"], "deleted": True})
        elif "quantity" in into:
            changes.append({"id": item["id"], "quantity": into["quantity"]})
    changes += [{name: item[name] for name in ("price", "quantity") if name in item} for item in wanted.values()]
    return {
        "items": changes,
        "metadata": phase["metadata"],
        "proration_behavior": phase["proration_behavior"],
        "discounts": [_named(each) for each in phase["discounts"]] or "",
    }


def _named(discount: Json) -> Json:
    """Return a phase's discount as a parameter."""
    return {name: value for name, value in discount.items() if value is not None}


def _renew(context: Context, subscription: Json, phase: Json | None) -> None:
    """Begin a new period; charges for the usage of the last period, and in advance for the new period."""
    trial_over = subscription["status"] == "trialing" and _reached(context, subscription["trial_end"])
    if trial_over and not beginnings.has_card(context, subscription):
        match subscription["trial_settings"]["end_behavior"]["missing_payment_method"]:
            case "cancel":
                endings.end(context, subscription)
                return
            case "pause":
                pauses.begin(context, subscription, "trial_end_without_payment_method")
                return
            case _:
                pass
    subscription = _discounted(context, subscription, phase)
    before = subscription["items"]["data"]
    over = {item["id"] for item in before if _reached(context, item["current_period_end"])}
    since = min(item["current_period_start"] for item in before if item["id"] in over)
    charges = []
    if subscription["status"] != "trialing":
        charges = [
            lines.used(context.work, subscription, item, item["current_period_end"])
            for item in before
            if item["id"] in over and subscription_items.metered(item)
        ]
    items = _items_of(context, subscription, phase) if phase else before
    anchor = subscription["billing_cycle_anchor"] if _same_rhythm(context, before, items) else context.now
    known = {item["id"] for item in before} - over
    data = []
    for item in items:
        begun = item
        if item["id"] not in known:
            period = subscription_items.next_period(context, item, anchor)
            begun, charge = subscription_items.begun(context, subscription, item, period)
            charges += [charge] if charge else []
        data.append(begun)
    changes = {"billing_cycle_anchor": anchor, "items": {**subscription["items"], "data": data}}
    if trial_over:
        changes["status"] = "active"
    if phase:
        changes["metadata"] = {**subscription["metadata"], **phase["metadata"]}
    if invoice := drafted(context, subscription, charges, since):
        changes["latest_invoice"] = invoice["id"]
    context.update(subscription, changes, "customer.subscription.updated")


def _discounted(context: Context, subscription: Json, phase: Json | None) -> Json:
    """Return the subscription with the discounts of its new phase; without a new phase they stay."""
    if phase is None:
        return subscription
    wanted = [_named(each) for each in phase["discounts"]]
    return context.work.replace({**subscription, "discounts": discounts.chosen(context, subscription, wanted)})


def _items_of(context: Context, subscription: Json, phase: Json) -> list[Json]:
    """Return the items of a phase; an item keeps its id and state if its price is already subscribed to."""
    present = {item["price"]: item for item in subscription["items"]["data"]}
    items = []
    for wanted in phase["items"]:
        line = subscription_items.Line(context.work.get("price", wanted["price"]), wanted.get("quantity"))
        made = subscription_items.made(context, subscription["id"], line, (context.now, context.now))
        kept = present.get(wanted["price"])
        if kept is None:
            items.append(made)
        else:
            items.append(kept if line.quantity is None else {**kept, "quantity": line.quantity})
    return items


def _same_rhythm(context: Context, before: list[Json], after: list[Json]) -> bool:
    old = [context.work.get("price", item["price"])["recurring"] for item in before]
    new = [context.work.get("price", item["price"])["recurring"] for item in after]
    return any(periods.same(one, other) for one in old for other in new)


def drafted(
    context: Context,
    subscription: Json,
    charges: list[lines.Charge],
    since: int,
    reason: str = "subscription_cycle",
) -> Json | None:
    """Store a period's draft with the pending items; None without charges. An unpaid subscription's stays a draft."""
    waiting = pending.waiting(context, subscription["customer"], subscription["id"])
    charges = [*(pending.charge_of(context, item) for item in waiting), *charges]
    if not charges:
        return None
    about = invoicing.Terms(
        reason=reason,
        period=(since, context.now),
        subscription=subscription,
        auto_advance=subscription["status"] != "unpaid",
    )
    return invoicing.draft(context, context.work.get("customer", subscription["customer"]), charges, about)


def finish(context: Context, subscription: Json) -> None:
    """End a subscription at its scheduled end; the last invoice has the usage, and credits unless switched off."""
    items = subscription["items"]["data"]
    charges: list[lines.Charge] = []
    if subscription["status"] in {"active", "past_due", "unpaid"}:
        for item in items:
            if subscription_items.metered(item):
                charges.append(lines.used(context.work, subscription, item, context.now))
            elif subscription["_credits_at_end"]:
                charges += prorations.credits_for(context.work, subscription, item, context.now)
    since = min(item["current_period_start"] for item in items)
    invoice = drafted(context, subscription, charges, since)
    latest = {"latest_invoice": invoice["id"]} if invoice else {}
    endings.end(context, {**subscription, **latest})
