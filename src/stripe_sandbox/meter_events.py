"""Usage, as it is reported to meters."""

from stripe_sandbox import errors, forms, state
from stripe_sandbox.context import Context
from stripe_sandbox.state import Json

PAST_SECONDS_MAX = 35 * 24 * 3600
FUTURE_SECONDS_MAX = 5 * 60
IDENTIFIER_LENGTH_MAX = 100
IDENTIFIER_SECONDS = 24 * 3600
"""How long an identifier is unique. Stripe promises no more, so a later repeat is counted again here."""

VALUE_DIGITS_MAX = 15


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/billing/meter_events. A meter or customer that is unknown shows only later, as with Stripe."""
    identifier = params.get("identifier") or state.new_id("mtrevt")
    timestamp = params.get("timestamp", context.now)
    _check_bounds(context, identifier, timestamp)
    meters, _ = context.work.select(
        "billing.meter", {"event_name": params["event_name"], "status": "active"}, state.Page(1)
    )
    customer_key, value_key = "stripe_customer_id", "value"
    if meters:
        customer_key = meters[0]["customer_mapping"]["event_payload_key"]
        value_key = meters[0]["value_settings"]["event_payload_key"]
    payload = params["payload"]
    customer, value = _payload(payload, customer_key, value_key)
    known = context.work.find("customer", customer)
    problem = None if known and meters else "no_meter_found" if known else "customer_not_found"
    if context.work.connection.execute(
        "SELECT 1 FROM meter_events WHERE identifier = ? AND created > ?",
        (identifier, context.now - IDENTIFIER_SECONDS),
    ).fetchone():
        raise errors.Refused(f"An event already exists with identifier {identifier}.")
    context.work.connection.execute(
        "INSERT INTO meter_events (identifier, event_name, customer, value, timestamp, created, problem)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (identifier, params["event_name"], customer, value, timestamp, context.now, problem),
    )
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
