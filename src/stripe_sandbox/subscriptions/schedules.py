"""Answers requests about subscription schedules; only schedules of existing subscriptions are supported."""

from typing import Any

from stripe_sandbox import errors
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings, phases, subscriptions


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/subscription_schedules; only with `from_subscription`."""
    if "from_subscription" not in params:
        raise errors.InvalidParameter(
            "The sandbox makes schedules from_subscription only.", param="from_subscription", code="sandbox_unsupported"
        )
    subscription = context.work.get("subscription", params["from_subscription"], param="from_subscription")
    if subscription["status"] in endings.OVER:
        raise errors.Refused("The subscription is canceled.", param="from_subscription")
    if subscription["schedule"]:
        raise errors.Refused(
            f"You cannot migrate a subscription that is already attached to a schedule: `{subscription['schedule']}`.",
            param="from_subscription",
        )
    made = phases.add(context, subscription)
    return context.show(made, params)


def retrieve(context: Context, params: forms.Params, schedule_id: str) -> Json:
    """Answer GET /v1/subscription_schedules/{id}."""
    return context.show(context.work.get("subscription_schedule", schedule_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/subscription_schedules."""
    where: dict[str, Any] = {"customer": params["customer"]} if "customer" in params else {}
    return context.show_list("subscription_schedule", "/v1/subscription_schedules", where, params)


def update(context: Context, params: forms.Params, schedule_id: str) -> Json:
    """Answer POST /v1/subscription_schedules/{id}: changes the later phases, and what follows the last phase."""
    schedule = _active(context, schedule_id)
    changes: Json = {"metadata": rules.merged_metadata(schedule["metadata"], params.get("metadata"))}
    if "end_behavior" in params:
        if params["end_behavior"] not in {"release", "cancel"}:
            raise errors.InvalidParameter("end_behavior must be release or cancel.", param="end_behavior")
        changes["end_behavior"] = params["end_behavior"]
    if "phases" in params:
        read = phases.read(context, schedule, params["phases"])
        past = [phase for phase in schedule["phases"] if phase["end_date"] <= read[0]["start_date"]]
        changes["phases"] = past + read
        changes["current_phase"] = {"end_date": read[0]["end_date"], "start_date": read[0]["start_date"]}
        subscription = context.work.get("subscription", schedule["subscription"])
        context.work.replace({**subscription, "_phase_end": read[0]["end_date"]})
    return context.show(context.update(schedule, changes, "subscription_schedule.updated"), params)


def release(context: Context, params: forms.Params, schedule_id: str) -> Json:
    """Answer POST /v1/subscription_schedules/{id}/release; the subscription keeps its present items."""
    schedule = _active(context, schedule_id)
    subscription = context.work.get("subscription", schedule["subscription"])
    context.update({**subscription, "_phase_end": None}, {"schedule": None}, "customer.subscription.updated")
    return context.show(phases.release(context, schedule), params)


def cancel(context: Context, params: forms.Params, schedule_id: str) -> Json:
    """Answer POST /v1/subscription_schedules/{id}/cancel; this also ends the subscription."""
    schedule = _active(context, schedule_id)
    subscription = context.work.get("subscription", schedule["subscription"])
    invoice_now, prorates = params.get("invoice_now", True), params.get("prorate", True)
    subscriptions.canceled(context, subscription, {}, invoice_now=invoice_now, prorates=prorates)
    return context.show(context.work.get("subscription_schedule", schedule_id), params)


def _active(context: Context, schedule_id: str) -> Json:
    schedule = context.work.get("subscription_schedule", schedule_id)
    if schedule["status"] != "active":
        raise errors.Refused(f"The schedule is {schedule['status']}; only an active one can be changed.")
    return schedule
