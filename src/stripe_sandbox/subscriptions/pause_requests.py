"""Answers requests that pause and resume a subscription itself."""

from stripe_sandbox import errors
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import charging, invoicing, lines, pending
from stripe_sandbox.meters import usage
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import pauses, prorations, renewals, subscription_items
from stripe_sandbox.time import moments

PAUSABLE = ("active", "past_due")


def pause(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer POST /v1/subscriptions/{id}/pause: bills what was used, and credits what was paid in advance."""
    subscription = context.work.get("subscription", subscription_id)
    if not pauses.possible(subscription):
        raise errors.Refused(
            f"The subscription is managed by the subscription schedule `{subscription['schedule']}`; it cannot be"
            " paused."
        )
    if subscription["status"] not in PAUSABLE:
        raise errors.Refused(f"A subscription that is {subscription['status']} cannot be paused.")
    asked = params.get("bill_for", {})
    through = asked.get("outstanding_usage_through", {}).get("type", "now")
    since = asked.get("unused_time_from", {}).get("type", "now")
    data, charges = [], []
    for item in subscription["items"]["data"]:
        settled, parts = _settled(context, subscription, item, through, since)
        data.append(settled)
        charges += parts
    changed = context.work.replace({**subscription, "items": {**subscription["items"], "data": data}})
    for charge in charges:
        pending.add(context, subscription["customer"], charge)
    if charges and params.get("invoicing_behavior") == "invoice":
        changed = _invoiced(context, changed)
    return context.show(pauses.begin(context, changed, "pause_requested"), params)


def _settled(
    context: Context, subscription: Json, item: Json, through: str, since: str
) -> tuple[Json, list[lines.Charge]]:
    """Return the item as it is after the pause has billed it, and the charges or credits of that bill."""
    if subscription_items.metered(item):
        if through == "none":
            return item, []
        used = lines.used_until_now(context.work, subscription, item, context.now)
        billed = {**item, "_usage_from": context.now, "_usage_after": usage.latest(context.work)}
        return billed, [used] if used.amount else []
    if since == "none":
        return item, []
    at = context.now if since == "now" else item["current_period_start"]
    return {**item, "_debits": []}, prorations.credits_for(context.work, subscription, item, at)


def _invoiced(context: Context, subscription: Json) -> Json:
    invoice = renewals.drafted(context, subscription, [], context.now, reason="subscription_update")
    if invoice is None:
        return subscription
    charging.finalise_and_collect_now(context, invoice)
    latest = {**context.work.get("subscription", subscription["id"]), "latest_invoice": invoice["id"]}
    return context.work.replace(latest)


def resume(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer POST /v1/subscriptions/{id}/resume.

    With something to pay, the subscription stays paused until the invoice of its resumption is paid or uncollectible.
    """
    subscription = context.work.get("subscription", subscription_id)
    if subscription["status"] != "paused":
        raise errors.Refused("Only a subscription that is paused can be resumed.")
    if (waiting := subscription.get("_resumption")) and context.work.get("invoice", waiting["invoice"])[
        "status"
    ] == "open":
        raise errors.Refused(f"The invoice {waiting['invoice']} of an earlier resumption is not paid.")
    now = params.get("billing_cycle_anchor", {}).get("type", "now") == "now"
    behavior = "always_invoice" if now else params.get("proration_behavior", "create_prorations")
    charges, changes = (_anew if now else _continued)(context, subscription, prorates=behavior != "none")
    if behavior == "create_prorations":
        # A whole period that begins now is due now; the rest of a period waits for the next invoice.
        for charge in (each for each in charges if each.proration):
            pending.add(context, subscription["customer"], charge)
        charges = [charge for charge in charges if not charge.proration]
    invoice = renewals.drafted(context, subscription, charges, context.now) if now or charges else None
    if invoice is None:
        return context.show(pauses.end(context, subscription, changes=changes), params)
    final = invoicing.finalise(context, invoice) if charging.collectable(invoice) else invoice
    on_success = params.get("payment_behavior") == "resume_on_payment_success"
    # Once a payment was attempted, the invoice does not expire any more.
    expires_at = None if on_success else context.now + moments.RESUMPTION_SECONDS
    waiting = {"invoice": final["id"], "on_success": on_success, "expires_at": expires_at}
    changes |= {"latest_invoice": final["id"]}
    resuming = context.update({**subscription, "_resumption": waiting}, changes, "customer.subscription.updated")
    if final["status"] != "open":
        return context.show(pauses.end(context, resuming), params)
    if on_success or final["amount_due"] == 0:
        charging.collect(context, final)
    else:
        context.work.replace({**final, "auto_advance": False})
    return context.show(context.work.get("subscription", subscription_id), params)


def _anew(context: Context, subscription: Json, *, prorates: bool) -> tuple[list[lines.Charge], Json]:
    """Begin new periods now, with a new anchor."""
    del prorates
    data, charges = [], []
    for item in subscription["items"]["data"]:
        period = subscription_items.next_period(context, item, context.now)
        begun, charge = subscription_items.begun(context, subscription, item, period, usage.latest(context.work))
        data.append(begun)
        charges += [charge] if charge else []
    changes = {"billing_cycle_anchor": context.now, "items": {**subscription["items"], "data": data}}
    return charges, changes


def _continued(context: Context, subscription: Json, *, prorates: bool) -> tuple[list[lines.Charge], Json]:
    """Go on with the periods that the anchor gives; the rest of a period that is not paid for is charged."""
    anchor = subscription["billing_cycle_anchor"]
    data, charges = [], []
    for item in subscription["items"]["data"]:
        start, end = subscription_items.period_at(context, item, anchor)
        current = {**item, "current_period_start": start, "current_period_end": end}
        if subscription_items.metered(item):
            since = max(start, context.now)
            current |= {"_usage_from": since, "_usage_after": usage.latest(context.work)}
        elif prorates and not any(debit["end"] > context.now for debit in item["_debits"]):
            charge = prorations.remaining(context.work, subscription, current, anchor, context.now)
            current["_debits"] = [prorations.debit(charge.amount, charge.start, charge.end)]
            charges.append(charge)
        data.append(current)
    return charges, {"items": {**subscription["items"], "data": data}}
