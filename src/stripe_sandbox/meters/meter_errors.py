"""Reports that accepted usage was not recorded, by events in the thin format, whose data is fetched separately."""

import datetime as dt
from typing import Any, Literal

from stripe_sandbox import state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.state import Json

Code = Literal[
    "archived_meter",
    "meter_event_customer_not_found",
    "meter_event_invalid_value",
    "meter_event_no_customer_defined",
    "meter_event_value_too_many_digits",
    "no_meter",
    "timestamp_in_future",
    "timestamp_too_far_in_past",
]

SAMPLES_MAX = 100
"""The most meter events of a report."""

NO_METER = "no_meter"


def report(context: Context, code: Code, identifiers: list[str]) -> Json:
    """Mark meter events as not recorded, and emit an event about it. Unknown identifiers are allowed."""
    marks = ", ".join("?" * len(identifiers))
    rows = context.work.connection.execute(
        f"SELECT seq, meter, customer FROM meter_events WHERE identifier IN ({marks})",  # noqa: S608 - marks only
        identifiers,
    ).fetchall()
    for seq, _, customer in rows:
        context.work.connection.execute("UPDATE meter_events SET problem = ? WHERE seq = ?", (code, seq))
        invoicing.count_drafts_again(context, customer)
    meter = next((meter for _, meter, _ in rows if meter), None)
    if code != NO_METER and meter is None:
        meters, _ = context.work.select("billing.meter", {}, state.Page(1))
        meter = meters[0]["id"] if meters else None
    return _told(context, code, identifiers[:SAMPLES_MAX], None if code == NO_METER else meter)


def _told(context: Context, code: str, identifiers: list[str], meter: str | None) -> Json:
    event_type = "v1.billing.meter.no_meter_found" if code == NO_METER else "v1.billing.meter.error_report_triggered"
    thin: dict[str, Any] = {
        "id": state.new_id("evt_test"),
        "object": "v2.core.event",
        "context": None,
        "created": _written(context.now),
        "livemode": False,
        "reason": None,
        "type": event_type,
    }
    if meter:
        thin["related_object"] = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
    samples = [
        {"error_message": f"The event was not recorded: {code}.", "request": {"identifier": identifier}}
        for identifier in identifiers
    ]
    kind = {"code": code, "error_count": len(samples), "sample_errors": samples}
    data = {
        "developer_message_summary": f"There were {len(samples)} invalid events.",
        "reason": {"error_count": len(samples), "error_types": [kind]},
        "validation_end": _written(context.now),
        "validation_start": _written(context.now - 10),
    }
    context.work.insert("v2.core.event", thin, created=context.now)
    context.work.insert("v2.core.event_data", {"id": f"{thin['id']}/data", "data": data}, created=context.now)
    context.queue(thin["id"])
    return thin


def _written(at: int) -> str:
    return f"{dt.datetime.fromtimestamp(at, dt.UTC):%Y-%m-%dT%H:%M:%S}.000Z"


def retrieve(context: Context, params: forms.Params, event_id: str) -> Json:
    """Answer GET /v2/core/events/{id}: the thin event with its data."""
    del params
    thin = context.work.get("v2.core.event", event_id)
    return {**thin, "data": context.work.get("v2.core.event_data", f"{event_id}/data")["data"]}
