"""Trials: their length, their changes, and their end without a card."""

import dataclasses

from stripe_sandbox import errors
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import lines
from stripe_sandbox.meters import usage
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import prorations, subscription_items
from stripe_sandbox.time import moments

TRIAL_DAYS_MAX = 730


@dataclasses.dataclass(frozen=True, slots=True)
class Moved:
    """The subscription's changes with its trial, the prorations, and the charges for whole periods."""

    changes: Json
    parts: list[lines.Charge]
    whole: list[lines.Charge]


def chosen_end(context: Context, params: forms.Params, prefix: str = "") -> int | None:
    """Return the trial's end of `trial_period_days` or `trial_end`, which are in the hash `prefix`; None: no trial."""
    days, end = params.get("trial_period_days"), params.get("trial_end")
    named = f"{prefix}[{{}}]" if prefix else "{}"
    if days is not None and end is not None:
        raise errors.InvalidParameter(
            "You may only specify one of trial_period_days and trial_end.", param=named.format("trial_end")
        )
    if days is not None:
        if not 1 <= days <= TRIAL_DAYS_MAX:
            raise errors.InvalidParameter(
                f"A trial lasts from 1 to {TRIAL_DAYS_MAX} days.", param=named.format("trial_period_days")
            )
        return int(context.now + days * moments.DAY_SECONDS)
    if end is None or end == "now":
        return None
    if end <= context.now:
        raise errors.InvalidParameter("trial_end must lie in the future.", param=named.format("trial_end"))
    return int(end)


def without_card(params: forms.Params) -> str | None:
    """Return what happens at a trial's end without a card; None if the parameters do not say."""
    given: str | None = params.get("trial_settings", {}).get("end_behavior", {}).get("missing_payment_method")
    return given


def moved(context: Context, subscription: Json, given: int | str, *, prorates: bool) -> Moved:
    """Begin, prolong or end a trial; the periods of all items change with it. Raises InvalidParameter."""
    end = context.now if given == "now" else int(given)
    if end < context.now:
        raise errors.InvalidParameter("trial_end must lie in the future.", param="trial_end")
    if end == context.now:
        return _ended(context, subscription)
    parts = []
    items = []
    for item in subscription["items"]["data"]:
        if not subscription_items.metered(item) and prorates:
            parts += prorations.credits_for(context.work, subscription, item, context.now)
        since = {"_usage_from": context.now, "_usage_after": usage.latest(context.work)}
        fresh: Json = since if subscription_items.metered(item) else {"_debits": []}
        items.append({**item, "current_period_start": context.now, "current_period_end": end, **fresh})
    changes = {
        "billing_cycle_anchor": end,
        "items": {**subscription["items"], "data": items},
        "status": "trialing",
        "trial_end": end,
        "trial_start": subscription["trial_start"] or context.now,
    }
    return Moved(changes, parts, [])


def _ended(context: Context, subscription: Json) -> Moved:
    """End the trial now; the period that follows is charged at once."""
    if subscription["status"] != "trialing":
        return Moved({}, [], [])
    items, whole = [], []
    for item in subscription["items"]["data"]:
        period = subscription_items.next_period(context, item, context.now)
        reported = usage.latest(context.work)
        begun, charge = subscription_items.begun(context, subscription, item, period, reported)
        items.append(begun)
        whole += [charge] if charge else []
    changes = {
        "billing_cycle_anchor": context.now,
        "items": {**subscription["items"], "data": items},
        "status": "active",
        "trial_end": context.now,
    }
    return Moved(changes, [], whole)
