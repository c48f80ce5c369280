"""Answers requests that report usage to meters, cancel it, and read its sums."""

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.meters import meters, usage
from stripe_sandbox.state import Json

PAST_SECONDS_MAX = 35 * 24 * 3600
FUTURE_SECONDS_MAX = 5 * 60
IDENTIFIER_LENGTH_MAX = 100
IDENTIFIER_SECONDS = 24 * 3600
"""How long a repeated identifier is refused. Stripe promises no more, so a later repeat is counted again."""

CANCEL_SECONDS = 24 * 3600
"""How long after its receipt an event can be cancelled."""

VALUE_DIGITS_MAX = 15
MINUTE_SECONDS = 60
WINDOW_SECONDS = {"hour": 3600, "day": 24 * 3600}


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/billing/meter_events. As with Stripe, an unknown meter or customer is not refused here.

    An accepted event is not counted yet: it counts after the delay of the meters.
    """
    identifier = params.get("identifier") or state.new_id("mtrevt")
    timestamp = params.get("timestamp", context.now)
    _check_bounds(context, identifier, timestamp)
    meter = meters.active(context, params["event_name"])
    customer_key, value_key = "stripe_customer_id", "value"
    if meter:
        customer_key = meter["customer_mapping"]["event_payload_key"]
        value_key = meter["value_settings"]["event_payload_key"]
    payload = params["payload"]
    customer, value = _payload(payload, customer_key, value_key)
    found = context.work.find("customer", customer)
    known = found is not None and not found.get("deleted")
    problem = None if known and meter else "no_meter" if known else "meter_event_customer_not_found"
    if context.work.connection.execute(
        "SELECT 1 FROM meter_events WHERE identifier = ? AND created > ?",
        (identifier, context.now - IDENTIFIER_SECONDS),
    ).fetchone():
        raise errors.Refused(f"An event already exists with identifier {identifier}.")
    context.work.connection.execute(
        "INSERT INTO meter_events"
        " (identifier, event_name, meter, customer, value, timestamp, created, counted, problem)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identifier,
            params["event_name"],
            meter["id"] if meter else None,
            customer,
            value,
            timestamp,
            context.now,
            context.now + context.delay_seconds("meters") + int(context.fault_seconds),
            problem,
        ),
    )
    invoicing.count_drafts_again(context, customer)
    return {
        "object": "billing.meter_event",
        "created": context.now,
        "event_name": params["event_name"],
        "identifier": identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": timestamp,
    }


def _check_bounds(context: Context, identifier: str, timestamp: int) -> None:
    if len(identifier) > IDENTIFIER_LENGTH_MAX:
        raise errors.InvalidParameter(
            f"An identifier has at most {IDENTIFIER_LENGTH_MAX} characters.", param="identifier"
        )
    if not context.now - PAST_SECONDS_MAX <= timestamp <= context.now + FUTURE_SECONDS_MAX:
        raise errors.InvalidParameter(
            "The timestamp must lie within the past 35 days and not more than 5 minutes ahead.", param="timestamp"
        )


def _payload(payload: dict[str, str], customer_key: str, value_key: str) -> tuple[str, int]:
    for key in (customer_key, value_key):
        if not payload.get(key):
            raise errors.InvalidParameter(
                f"Missing required payload key: {key}.", param=f"payload[{key}]", code="parameter_missing"
            )
    digits = payload[value_key].removeprefix("-")
    if not digits.isdecimal() or not digits.isascii() or len(digits) > VALUE_DIGITS_MAX:
        raise errors.InvalidParameter(
            f"The value must be a whole number of at most {VALUE_DIGITS_MAX} digits.", param=f"payload[{value_key}]"
        )
    return payload[customer_key], int(payload[value_key])


def adjust(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/billing/meter_event_adjustments: cancel an event, within a day of its receipt."""
    identifier = params.get("cancel", {}).get("identifier")
    if identifier is None:
        param = "cancel[identifier]"
        raise errors.InvalidParameter(f"Missing required param: {param}.", param=param, code="parameter_missing")
    row = context.work.connection.execute(
        "SELECT seq, customer, created FROM meter_events WHERE identifier = ? AND event_name = ? AND problem IS NULL"
        " ORDER BY seq DESC LIMIT 1",
        (identifier, params["event_name"]),
    ).fetchone()
    if row is None:
        raise errors.Refused(
            f"No event found with identifier {identifier}.", param="cancel[identifier]", code="resource_missing"
        )
    if row[2] <= context.now - CANCEL_SECONDS:
        raise errors.Refused(
            "An event can be canceled within 24 hours of its receipt only.", param="cancel[identifier]"
        )
    context.work.connection.execute("UPDATE meter_events SET problem = 'canceled' WHERE seq = ?", (row[0],))
    invoicing.count_drafts_again(context, row[1])
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": params["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }


def list_summaries(context: Context, params: forms.Params, meter_id: str) -> Json:
    """Answer GET /v1/billing/meters/{id}/event_summaries: a sum of the whole time, or of each hour or day."""
    meter = context.work.get("billing.meter", meter_id)
    context.work.get("customer", params["customer"], param="customer")
    start, end = params["start_time"], params["end_time"]
    window = params.get("value_grouping_window")
    step = WINDOW_SECONDS[window] if window else MINUTE_SECONDS
    for name, at in (("start_time", start), ("end_time", end)):
        if at % step:
            raise errors.InvalidParameter(f"{name} must be aligned with {window or 'minute'} boundaries.", param=name)
    if start >= end:
        raise errors.InvalidParameter("end_time must be after start_time.", param="end_time")
    limit = params.get("limit", 10)
    if not 1 <= limit <= rendering.LIMIT_MAX:
        raise errors.InvalidParameter(f"limit must be between 1 and {rendering.LIMIT_MAX}.", param="limit")
    # The newest first, as in every list. A cursor is the id of a summary, which ends with the start of its window.
    starts = range(start, end, step)[::-1] if window else range(start, start + 1)
    cursor = params.get("starting_after")
    later = [at for at in starts if cursor is None or at < int(cursor.rpartition("_")[2])]
    length = step if window else end - start
    shown = [_summary(context, meter, params["customer"], at, at + length) for at in later[:limit]]
    url = f"/v1/billing/meters/{meter_id}/event_summaries"
    return {**rendering.listed(shown, url), "has_more": len(later) > limit}


def _summary(context: Context, meter: Json, customer: str, start: int, end: int) -> Json:
    return {
        "id": f"mtrusg_{meter['id']}_{start}",
        "object": "billing.meter_event_summary",
        "aggregated_value": usage.total(context.work, meter, customer, usage.Window(start, end)),
        "end_time": end,
        "livemode": False,
        "meter": meter["id"],
        "start_time": start,
    }
