"""Answers requests about meters: the name by which usage is reported, and how it is aggregated."""

import sqlite3

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/billing/meters."""
    mapping = params.get("customer_mapping", {})
    meter = {
        "id": state.new_id("mtr"),
        "object": "billing.meter",
        "created": context.now,
        "customer_mapping": {
            "event_payload_key": mapping.get("event_payload_key", "stripe_customer_id"),
            "type": "by_id",
        },
        "default_aggregation": params["default_aggregation"],
        "display_name": params["display_name"],
        "event_name": params["event_name"],
        "event_time_window": params.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": context.now,
        "value_settings": params.get("value_settings", {"event_payload_key": "value"}),
    }
    try:
        context.add("billing.meter", meter, "billing.meter.created")
    except sqlite3.IntegrityError as error:
        raise _event_name_taken(meter) from error
    return context.show(meter, params)


def _event_name_taken(meter: Json) -> errors.Refused:
    return errors.Refused(
        f"There is already an active meter with the event name '{meter['event_name']}'.",
        param="event_name",
        code="resource_already_exists",
    )


def retrieve(context: Context, params: forms.Params, meter_id: str) -> Json:
    """Answer GET /v1/billing/meters/{id}."""
    return context.show(context.work.get("billing.meter", meter_id), params)


def active(context: Context, event_name: str) -> Json | None:
    """Return the active meter with an event name; None if there is none."""
    found, _ = context.work.select("billing.meter", {"event_name": event_name, "status": "active"}, state.Page(1))
    return found[0] if found else None


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/billing/meters."""
    where = {"status": params["status"]} if "status" in params else {}
    return context.show_list("billing.meter", "/v1/billing/meters", where, params)


def update(context: Context, params: forms.Params, meter_id: str) -> Json:
    """Answer POST /v1/billing/meters/{id}; only the display name can change."""
    meter = context.work.get("billing.meter", meter_id)
    if params.get("display_name", meter["display_name"]) != meter["display_name"]:
        changes = {"display_name": params["display_name"], "updated": context.now}
        meter = context.update(meter, changes, "billing.meter.updated")
    return context.show(meter, params)


def deactivate(context: Context, params: forms.Params, meter_id: str) -> Json:
    """Answer POST /v1/billing/meters/{id}/deactivate."""
    meter = context.work.get("billing.meter", meter_id)
    changes = {"status": "inactive", "status_transitions": {"deactivated_at": context.now}, "updated": context.now}
    if meter["status"] == "active":
        meter = context.update(meter, changes, "billing.meter.deactivated")
    return context.show(meter, params)


def reactivate(context: Context, params: forms.Params, meter_id: str) -> Json:
    """Answer POST /v1/billing/meters/{id}/reactivate."""
    meter = context.work.get("billing.meter", meter_id)
    changes = {"status": "active", "status_transitions": {"deactivated_at": None}, "updated": context.now}
    try:
        if meter["status"] == "inactive":
            meter = context.update(meter, changes, "billing.meter.reactivated")
    except sqlite3.IntegrityError as error:
        raise _event_name_taken(meter) from error
    return context.show(meter, params)
