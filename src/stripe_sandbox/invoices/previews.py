"""Previews an invoice: makes the change, reads the invoice, and undoes both."""

import contextlib
import dataclasses

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import pending
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings, renewals, subscriptions
from stripe_sandbox.time import moments

CHANGES = (
    "items",
    "proration_behavior",
    "proration_date",
    "billing_cycle_anchor",
    "cancel_at",
    "cancel_at_period_end",
    "metadata",
    "trial_end",
)
"""The parameters that `subscription_details` and a subscription have in common."""


class _Undo(Exception):
    pass


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/invoices/create_preview: of a change, of a new subscription, or of the next renewal."""
    shown: list[Json] = []
    with contextlib.suppress(_Undo), context.work.attempt():
        shown += _shown(context, _previewed(context, params))
        raise _Undo
    if not shown:
        raise errors.NotFound("No upcoming invoices for customer.", code="invoice_upcoming_none")
    return shown[0]


def _previewed(context: Context, params: forms.Params) -> Json | None:
    details = params.get("subscription_details", {})
    given = {name: details[name] for name in CHANGES if name in details}
    given |= {"discounts": params["discounts"]} if "discounts" in params else {}
    if "subscription" not in params:
        if "customer" not in params:
            raise errors.InvalidParameter("Give a customer or a subscription.", param="customer")
        made = subscriptions.created(context, {**given, "customer": params["customer"]})
        return _latest(context, made)
    before = context.work.get("subscription", params["subscription"], param="subscription")
    if before["status"] in endings.OVER:
        return None
    if details.get("cancel_now"):
        prorates = details.get("proration_behavior") != "none"
        after = subscriptions.canceled(context, before, {}, invoice_now=True, prorates=prorates)
        return _new(context, before, after)
    after = subscriptions.updated(context, before, given) if given else before
    if params.get("preview_mode", "next") == "next" and (at_once := _new(context, before, after)):
        return at_once
    return _next(context, after)


def _new(context: Context, before: Json, after: Json) -> Json | None:
    return _latest(context, after) if after["latest_invoice"] != before["latest_invoice"] else None


def _latest(context: Context, subscription: Json) -> Json | None:
    return context.work.find("invoice", subscription["latest_invoice"] or "")


def _next(context: Context, subscription: Json) -> Json | None:
    """Go from moment to moment until the subscription makes an invoice; a trial's notice, for example, makes none."""
    latest = subscription["latest_invoice"]
    for _ in range(4):
        now = context.work.get("subscription", subscription["id"])
        moment = moments.of(now)
        if moment is None:
            return None
        renewals.act(dataclasses.replace(context, now=max(moment[0], context.now)), now["id"])
        after = context.work.get("subscription", subscription["id"])
        if after["latest_invoice"] != latest:
            return context.work.get("invoice", after["latest_invoice"])
    return None


def _shown(context: Context, invoice: Json | None) -> list[Json]:
    """Return the invoice as a draft that was not finalised, charged or paid yet."""
    if invoice is None:
        return []
    invoice_id = state.new_id("upcoming_in")
    # A preview is not stored, so its lines cannot be fetched later: it shows all of them.
    shown = rendering.render(context.work, invoice, inner_max=pending.PENDING_MAX)
    lines = [{**line, "id": state.new_id("il_tmp"), "invoice": invoice_id} for line in shown["lines"]["data"]]
    undone = {
        "id": invoice_id,
        "amount_paid": 0,
        "amount_remaining": shown["amount_due"],
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatically_finalizes_at": None,
        "billing_reason": "upcoming",
        "effective_at": None,
        "ending_balance": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "lines": rendering.listed(lines, f"/v1/invoices/upcoming/lines?subscription={invoice_id}"),
        "number": None,
        "status": "draft",
        "status_transitions": dict.fromkeys(shown["status_transitions"]),
    }
    return [{**shown, **undone}]
