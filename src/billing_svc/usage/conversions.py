"""Usage messages to and from what the rules speak."""

from collections.abc import Sequence

from google.rpc import code_pb2

from billing.v1 import decision_pb2, errors_pb2, usage_pb2
from billing_svc import errors, fields
from billing_svc.quota import conversions as quota_conversions
from billing_svc.reservations import rules as reservations_rules
from billing_svc.usage import books, rules

EVENTS_MAX = 5_000
RETRY_ATTEMPT_MAX = 1_000
VIOLATIONS_MAX = 20

_REJECTING = usage_pb2.IF_EXCEEDED_REJECT
_IF_EXCEEDED = frozenset(usage_pb2.IfExceeded.values())


def from_proto_event(
    request: usage_pb2.RecordUsageRequest, caller: str, request_id: str, prefix: str = ""
) -> rules.NewEvent:
    """Return the event that a request asks to record. Raises InvalidRequest."""
    check = fields.Fields(prefix)
    account_id = check.account_id(request.account_id)
    event_id = check.identifier("event_id", request.event_id)
    meter, operation = request.meter, request.operation
    check.meter_or_operation(meter, operation)
    reservation_id = check.optional_identifier(
        "reservation_id", request.reservation_id, quota_conversions.RESERVATION_ID_LENGTH_MAX
    )
    quantity = request.quantity if request.HasField("quantity") else None
    level = request.level if request.HasField("level") else None
    if quantity is not None:
        # A gauge takes a negative change; whether the meter is one shows later.
        check.quantity("quantity", quantity, least=-fields.QUANTITY_MAX)
        if quantity == 0 or (operation and quantity < 0):
            check.refuse("quantity", f"is {quantity}; must be 1 to {fields.QUANTITY_MAX}")
    if level is not None:
        check.quantity("level", level, least=0)
        if quantity is not None or operation:
            check.refuse("level", "is the whole of what a gauge is set to; give no quantity and no operation with it")
    retry_attempt, if_exceeded = request.retry_attempt, request.if_exceeded
    if not 0 <= retry_attempt <= RETRY_ATTEMPT_MAX:
        check.refuse("retry_attempt", f"is {retry_attempt}; must be 0 to {RETRY_ATTEMPT_MAX}")
    if if_exceeded not in _IF_EXCEEDED:
        check.refuse("if_exceeded", f"{if_exceeded} is no value of IfExceeded")
    occurred_at = check.instant("occurred_at", request.occurred_at) if request.HasField("occurred_at") else None
    properties = check.properties("properties", request.properties)
    check.done()
    return rules.NewEvent(
        account_id=account_id,
        event_id=event_id,
        sent=rules.Sent(
            meter=meter or None,
            operation=operation or None,
            quantity=quantity,
            level=level,
            occurred_at=occurred_at,
            properties=properties,
        ),
        retry_attempt=retry_attempt,
        reject=if_exceeded == _REJECTING,
        reservation_id=reservation_id,
        caller=caller,
        request_id=request_id,
    )


def to_proto_outcome(outcome: books.Answer | rules.Denied) -> usage_pb2.RecordUsageResponse:
    """Return the answer to an event that was recorded, now or earlier, or denied."""
    return to_proto_recorded(outcome) if isinstance(outcome, books.Answer) else to_proto_denied(outcome)


def to_proto_recorded(answer: books.Answer) -> usage_pb2.RecordUsageResponse:
    """Return the answer to a recorded event; a repeat differs in `duplicate` alone."""
    recorded = answer.recorded
    return usage_pb2.RecordUsageResponse(
        duplicate=answer.duplicate,
        used=recorded.used,
        cost=recorded.units,
        meter=recorded.meter,
        billable=recorded.billable,
        included=recorded.included or 0,
        unlimited=recorded.included is None,
        remaining=recorded.remaining,
        reserved=recorded.reserved,
        over_limit=quota_conversions.is_over_hard_limit(recorded.reason),
        decision=decision_pb2.DECISION_ALLOWED,
        reason=quota_conversions.to_proto_reason(recorded.reason),
        period_start=fields.to_proto_instant(recorded.period_start),
        period_end=fields.to_proto_instant(recorded.period_end),
        plan=recorded.plan,
        catalog_version=recorded.catalog_version,
        superseded=recorded.superseded,
        reservation_outcome=_to_proto_reservation_outcome(recorded.reservation_outcome),
        overridden=recorded.overridden,
    )


def to_proto_denied(denied: rules.Denied) -> usage_pb2.RecordUsageResponse:
    """Return the answer to an event with REJECT that was not written."""
    counter, under, included = denied.counter, denied.under, denied.allowance.included
    return usage_pb2.RecordUsageResponse(
        used=counter.shown_used,
        meter=denied.meter,
        included=included or 0,
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


def _to_proto_reservation_outcome(
    outcome: reservations_rules.Outcome | None,
) -> usage_pb2.ReservationOutcome.ValueType:
    if outcome is None:
        return usage_pb2.RESERVATION_OUTCOME_UNSPECIFIED
    return usage_pb2.ReservationOutcome.Value(f"RESERVATION_OUTCOME_{outcome.name}")


def to_proto_error(error: errors.BillingError) -> usage_pb2.EventError:
    """Return why one event of a batch was not recorded; the same that RecordUsage would answer."""
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


def from_proto_batch(
    request: usage_pb2.BatchRecordUsageRequest, caller: str, request_id: str
) -> list[rules.NewEvent | errors.BillingError]:
    """Return the events of a batch, in the place of an unfit one its error. Raises InvalidRequest on their number."""
    if not 1 <= len(request.events) <= EVENTS_MAX:
        problem = f"has {len(request.events)} entries; must have 1 to {EVENTS_MAX}"
        raise errors.InvalidRequest([errors.FieldViolation("events", problem)])
    events: list[rules.NewEvent | errors.BillingError] = []
    for event in request.events:
        try:
            events.append(from_proto_event(event, caller, request_id))
        except errors.BillingError as error:
            events.append(error)
    return events


def to_proto_batch(
    request: usage_pb2.BatchRecordUsageRequest, outcomes: Sequence[books.Outcome]
) -> usage_pb2.BatchRecordUsageResponse:
    """Return the answers to a batch, in its order."""
    response = usage_pb2.BatchRecordUsageResponse()
    for event, outcome in zip(request.events, outcomes, strict=True):
        result = response.results.add(event_id=event.event_id[: fields.ID_LENGTH_MAX])
        if isinstance(outcome, errors.BillingError):
            result.error.CopyFrom(to_proto_error(outcome))
            response.failed += 1
            continue
        result.answer.CopyFrom(to_proto_outcome(outcome))
        if isinstance(outcome, rules.Denied):
            response.denied += 1
        elif outcome.duplicate:
            response.duplicates += 1
        else:
            response.recorded += 1
    return response
