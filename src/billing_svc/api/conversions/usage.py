"""Converts usage messages to and from the types of `metering`."""

import functools
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

from google.rpc import code_pb2

from billing.v1 import decision_pb2, errors_pb2, usage_pb2
from billing_svc.api import fields
from billing_svc.api.conversions import quota as quota_conversions
from billing_svc.metering.quota import holds
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.usage import batch_ledger, rules
from billing_svc.platform import errors

EVENTS_MAX = 5_000
RETRY_ATTEMPT_MAX = 1_000
VIOLATIONS_MAX = 20

# Matches the ids and names of nearly every event at once; only if it does not match, each field is checked.
_NAME = "[a-z][a-z0-9_]{0,63}"
_ID = "[!-~]{1,%d}"
_FIT = re.compile(
    f"{_ID % fields.ACCOUNT_ID_LENGTH_MAX} {_ID % fields.ID_LENGTH_MAX} (?:{_NAME} | {_NAME}) "
    f"(?:{_ID % quota_conversions.RESERVATION_ID_LENGTH_MAX})?",
    re.ASCII,
)
_REJECTING = usage_pb2.IF_EXCEEDED_REJECT
_RESERVATION_OUTCOMES = {
    outcome: usage_pb2.ReservationOutcome.Value(f"RESERVATION_OUTCOME_{outcome.name}")
    for outcome in holds.SettlementOutcome
}
_IF_EXCEEDED = frozenset(usage_pb2.IfExceeded.values())


def from_proto_event(request: usage_pb2.RecordUsageRequest, caller: str, request_id: str) -> rules.NewEvent:
    """Return the event to record. Raises InvalidRequest."""
    check = fields.Fields()
    account_id, event_id, meter, operation = request.account_id, request.event_id, request.meter, request.operation
    reservation_id = request.reservation_id
    if not _FIT.fullmatch(f"{account_id} {event_id} {meter} {operation} {reservation_id}"):
        check.account_id(account_id)
        check.identifier("event_id", event_id)
        check.meter_or_operation(meter, operation)
        check.optional_identifier("reservation_id", reservation_id, quota_conversions.RESERVATION_ID_LENGTH_MAX)
    quantity = request.quantity if request.HasField("quantity") else None
    level = request.level if request.HasField("level") else None
    if quantity is not None:
        # A gauge accepts a negative change; whether the meter is a gauge is checked later.
        check.quantity("quantity", quantity, least=-quota_rules.UNITS_MAX)
        if quantity == 0 or (operation and quantity < 0):
            check.refuse("quantity", f"is {quantity}; must be 1 to {quota_rules.UNITS_MAX}")
    if level is not None:
        check.quantity("level", level, least=0)
        if quantity is not None or operation:
            check.refuse("level", "sets a gauge to a level; give no quantity and no operation with it")
    retry_attempt, if_exceeded = request.retry_attempt, request.if_exceeded
    if not 0 <= retry_attempt <= RETRY_ATTEMPT_MAX:
        check.refuse("retry_attempt", f"is {retry_attempt}; must be 0 to {RETRY_ATTEMPT_MAX}")
    if if_exceeded not in _IF_EXCEEDED:
        check.refuse("if_exceeded", f"is {if_exceeded}, which is not a value of IfExceeded")
    occurred_at = check.instant("occurred_at", request.occurred_at) if request.HasField("occurred_at") else None
    properties = check.properties("properties", request.properties)
    check.done()
    sent = rules.SentEvent(meter or None, operation or None, quantity, level, occurred_at, properties)
    reject = if_exceeded == _REJECTING
    return rules.NewEvent(account_id, event_id, sent, retry_attempt, reject, reservation_id, caller, request_id)


def to_proto_outcome(outcome: batch_ledger.EventAnswer | rules.DeniedEvent) -> usage_pb2.RecordUsageResponse:
    """Return the answer to an event that was recorded, now or earlier, or denied."""
    return to_proto_recorded(outcome) if isinstance(outcome, batch_ledger.EventAnswer) else to_proto_denied(outcome)


def to_proto_recorded(answer: batch_ledger.EventAnswer) -> usage_pb2.RecordUsageResponse:
    """Return the answer to a recorded event; a repeat's answer differs only in `duplicate`."""
    response = usage_pb2.RecordUsageResponse()
    _write_recorded(response, answer)
    return response


def _write_recorded(response: usage_pb2.RecordUsageResponse, answer: batch_ledger.EventAnswer) -> None:
    recorded = answer.recorded
    response.CopyFrom(
        _answer_under(
            (
                *(recorded.meter, recorded.included, recorded.overridden, recorded.reason),
                *(recorded.period_start, recorded.period_end, recorded.plan, recorded.catalog_version),
            )
        )
    )
    response.used = recorded.used
    response.cost = recorded.units
    response.remaining = recorded.remaining
    # Fields that nearly always have their default are set only if needed; setting them takes a third of the time.
    if recorded.billable:
        response.billable = recorded.billable
    if recorded.reserved:
        response.reserved = recorded.reserved
    if answer.duplicate:
        response.duplicate = True
    if recorded.superseded:
        response.superseded = True
    if recorded.reservation_outcome is not None:
        response.reservation_outcome = _RESERVATION_OUTCOMES[recorded.reservation_outcome]


# Meter, included, overridden, reason, the period's bounds, plan, version.
_Under: TypeAlias = tuple[str, int | None, bool, quota_rules.Reason, datetime, datetime, str, int]


# Cached: the fields that the answers of many events share. Copying them takes a third of the time of setting them.
@functools.lru_cache(maxsize=4096)
def _answer_under(under: _Under) -> usage_pb2.RecordUsageResponse:
    meter, included, overridden, reason, period_start, period_end, plan, catalog_version = under
    return usage_pb2.RecordUsageResponse(
        meter=meter,
        included=included or 0,
        unlimited=included is None,
        over_limit=quota_conversions.is_over_hard_limit(reason),
        decision=decision_pb2.DECISION_ALLOWED,
        reason=quota_conversions.to_proto_reason(reason),
        period_start=fields.to_proto_instant(period_start),
        period_end=fields.to_proto_instant(period_end),
        plan=plan,
        catalog_version=catalog_version,
        overridden=overridden,
    )


def to_proto_denied(denied: rules.DeniedEvent) -> usage_pb2.RecordUsageResponse:
    """Return the answer to an event with REJECT that was denied and not stored."""
    counter, under, included = denied.counter, denied.under, denied.allowance.included
    response = usage_pb2.RecordUsageResponse(
        used=counter.shown_used,
        meter=denied.meter,
        included=included or 0,
        unlimited=included is None,
        remaining=counter.remaining(included),
        reserved=counter.reserved,
        over_limit=quota_conversions.is_over_hard_limit(denied.decision.reason),
        decision=decision_pb2.DECISION_DENIED,
        reason=quota_conversions.to_proto_reason(denied.decision.reason),
        period_start=fields.to_proto_instant(under.period.start),
        period_end=fields.to_proto_instant(under.period.end),
        plan=under.plan.key,
        resets_at=quota_conversions.to_proto_reset(denied.decision, counter, under),
        grace_ends_at=fields.to_proto_instant(denied.decision.grace_ends_at),
        upgrade_plans=denied.upgrade_plans,
        catalog_version=under.catalog_version,
        overridden=denied.allowance.overridden,
        pay_as_you_go=under.pay_as_you_go,
    )
    if denied.decision.retry_after is not None:
        response.retry_after.FromTimedelta(denied.decision.retry_after)
    return response


def to_proto_error(error: errors.BillingError) -> usage_pb2.EventError:
    """Return why an event of a batch was not recorded, as RecordUsage would answer it."""
    violations = error.violations if isinstance(error, errors.InvalidRequest) else ()
    return usage_pb2.EventError(
        code=getattr(code_pb2, error.code.name),
        reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}"),
        message=error.message,
        metadata=error.metadata,
        field_violations=[
            usage_pb2.FieldViolation(field=violation.field, description=violation.description)
            for violation in violations[:VIOLATIONS_MAX]
        ],
    )


def to_parts(request: usage_pb2.BatchRecordUsageRequest, size: int) -> list[list[int]]:
    """Split a batch into parts of about `size` events, and return the indexes of each part's events.

    An account's events stay in a single part and in order. Raises InvalidRequest if there are too few or too many.
    """
    if not 1 <= len(request.events) <= EVENTS_MAX:
        problem = f"has {len(request.events)} entries; must have 1 to {EVENTS_MAX}"
        raise errors.InvalidRequest([errors.FieldViolation("events", problem)])
    by_account: dict[str, list[int]] = {}
    for n, event in enumerate(request.events):
        by_account.setdefault(event.account_id, []).append(n)
    parts: list[list[int]] = [[]]
    for places in by_account.values():
        if len(parts[-1]) >= size:
            parts.append([])
        parts[-1] += places
    return parts


def from_proto_part(
    events: Sequence[usage_pb2.RecordUsageRequest], caller: str, request_id: str
) -> list[rules.NewEvent | errors.BillingError]:
    """Return the events of a part of a batch; an invalid event is replaced by its error."""
    parsed: list[rules.NewEvent | errors.BillingError] = []
    for event in events:
        try:
            parsed.append(from_proto_event(event, caller, request_id))
        except errors.BillingError as error:
            parsed.append(error)
    return parsed


def write_result(
    result: usage_pb2.EventResult, event: usage_pb2.RecordUsageRequest, outcome: batch_ledger.EventOutcome
) -> None:
    """Write the answer to an event of a batch into `result`; it replaces an answer of an earlier attempt."""
    result.event_id = event.event_id[: fields.ID_LENGTH_MAX]
    if isinstance(outcome, errors.BillingError):
        result.error.CopyFrom(to_proto_error(outcome))
    elif isinstance(outcome, rules.DeniedEvent):
        result.answer.CopyFrom(to_proto_denied(outcome))
    else:
        _write_recorded(result.answer, outcome)


def count_results(response: usage_pb2.BatchRecordUsageResponse) -> None:
    """Write how many answers of each kind there are."""
    for result in response.results:
        if result.HasField("error"):
            response.failed += 1
        elif result.answer.decision == decision_pb2.DECISION_DENIED:
            response.denied += 1
        elif result.answer.duplicate:
            response.duplicates += 1
        else:
            response.recorded += 1
