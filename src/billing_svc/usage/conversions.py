"""Usage messages to and from what the rules speak."""

from google.rpc import code_pb2

from billing.v1 import decision_pb2, errors_pb2, plan_pb2, usage_pb2
from billing_svc import errors, fields
from billing_svc.quota import conversions as quota_conversions
from billing_svc.quota import reading, terms
from billing_svc.quota import rules as quota_rules
from billing_svc.usage import recording, rules

EVENTS_MAX = 5_000
RETRY_ATTEMPT_MAX = 1_000_000
METERS_MAX = 50

_REJECTING = usage_pb2.IF_EXCEEDED_REJECT


def from_proto_event(
    request: usage_pb2.RecordUsageRequest, caller: str, request_id: str, prefix: str = ""
) -> rules.NewEvent:
    """Return the event that a request asks to record. Raises InvalidRequest."""
    check = fields.Fields(prefix)
    check.account_id(request.account_id)
    check.identifier("event_id", request.event_id)
    check.meter_or_operation(request.meter, request.operation)
    check.optional_identifier("reservation_id", request.reservation_id)
    has_quantity, has_level = request.HasField("quantity"), request.HasField("level")
    if has_quantity:
        # A gauge takes a negative change; whether the meter is one shows later.
        check.quantity("quantity", request.quantity, least=-fields.QUANTITY_MAX)
        if request.quantity == 0 or (request.operation and request.quantity < 0):
            check.refuse("quantity", f"is {request.quantity}; must be 1 to {fields.QUANTITY_MAX}")
    if has_level:
        check.quantity("level", request.level, least=0)
        if has_quantity or request.operation:
            check.refuse("level", "is the whole of what a gauge is set to; give no quantity and no operation with it")
    if not 0 <= request.retry_attempt <= RETRY_ATTEMPT_MAX:
        check.refuse("retry_attempt", f"is {request.retry_attempt}; must be 0 to {RETRY_ATTEMPT_MAX}")
    if request.if_exceeded not in usage_pb2.IfExceeded.values():
        check.refuse("if_exceeded", f"{request.if_exceeded} is no value of IfExceeded")
    occurred_at = check.instant("occurred_at", request.occurred_at) if request.HasField("occurred_at") else None
    properties = check.properties("properties", request.properties)
    check.done()
    return rules.NewEvent(
        account_id=request.account_id,
        event_id=request.event_id,
        sent=rules.Sent(
            meter=request.meter or None,
            operation=request.operation or None,
            quantity=request.quantity if has_quantity else None,
            level=request.level if has_level else None,
            occurred_at=occurred_at,
            properties=properties,
        ),
        retry_attempt=request.retry_attempt,
        reject=request.if_exceeded == _REJECTING,
        caller=caller,
        request_id=request_id,
    )


def to_proto_outcome(outcome: recording.Answer | rules.Denied) -> usage_pb2.RecordUsageResponse:
    """Return the answer to an event that was recorded, now or earlier, or denied."""
    return to_proto_recorded(outcome) if isinstance(outcome, recording.Answer) else to_proto_denied(outcome)


def to_proto_recorded(answer: recording.Answer) -> usage_pb2.RecordUsageResponse:
    """Return the answer to a recorded event; a repeat differs in `duplicate` alone."""
    recorded = answer.recorded
    counter = quota_rules.Counter(recorded.used, recorded.reserved, recorded.total_billable)
    in_plan = recorded.reason is not quota_rules.Reason.NOT_IN_PLAN
    return usage_pb2.RecordUsageResponse(
        duplicate=answer.duplicate,
        used=recorded.used,
        cost=recorded.units,
        meter=recorded.meter,
        billable=recorded.billable,
        included=recorded.included or 0,
        unlimited=in_plan and recorded.included is None,
        remaining=counter.remaining(recorded.included),
        reserved=recorded.reserved,
        over_limit=quota_conversions.resets(recorded.reason),
        decision=decision_pb2.DECISION_ALLOWED,
        reason=quota_conversions.to_proto_reason(recorded.reason),
        period_start=fields.to_proto_instant(recorded.period_start),
        period_end=fields.to_proto_instant(recorded.period_end),
        plan=recorded.plan,
        catalog_version=recorded.catalog_version,
    )


def to_proto_denied(denied: rules.Denied) -> usage_pb2.RecordUsageResponse:
    """Return the answer to an event with REJECT that was not written."""
    counter, under = denied.counter, denied.under
    return usage_pb2.RecordUsageResponse(
        used=counter.used,
        meter=denied.meter,
        included=denied.included or 0,
        remaining=counter.remaining(denied.included),
        reserved=counter.reserved,
        over_limit=quota_conversions.resets(denied.decision.reason),
        decision=decision_pb2.DECISION_DENIED,
        reason=quota_conversions.to_proto_reason(denied.decision.reason),
        period_start=fields.to_proto_instant(under.period.start),
        period_end=fields.to_proto_instant(under.period.end),
        plan=under.plan.key,
        resets_at=fields.to_proto_instant(
            under.period.end if quota_conversions.resets(denied.decision.reason) else None
        ),
        grace_ends_at=fields.to_proto_instant(denied.decision.grace_ends_at),
        upgrade_plans=denied.upgrade_plans,
        catalog_version=under.catalog_version,
    )


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
            for violation in violations
        ],
    )


def from_proto_get(request: usage_pb2.GetUsageRequest) -> None:
    """Check a request for usage. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    if len(request.meters) > METERS_MAX:
        check.refuse("meters", f"has {len(request.meters)} entries; at most {METERS_MAX} are allowed")
    for n, meter in enumerate(request.meters[:METERS_MAX]):
        check.name(f"meters[{n}]", meter)
    check.done()
    if request.HasField("period_containing") or request.with_operations or request.with_days:
        raise errors.NotAvailableYet("past periods and breakdowns are not available yet")


def to_proto_meter_usage(
    known: reading.Known, under: terms.Terms, counter: quota_rules.Counter
) -> usage_pb2.MeterUsage:
    """Return where one meter of an account stands."""
    meter = known.newest.meters[known.meter]
    limit, included = under.limit(known.meter), under.included(known.meter)
    usage = usage_pb2.MeterUsage(
        meter=known.meter,
        used=counter.used,
        included=included or 0,
        percent=counter.used * 100 // included if included else 0,
        unit=meter.unit,
        kind=plan_pb2.MeterKind.Value(f"METER_KIND_{meter.kind.upper()}"),
        reserved=counter.reserved,
        unlimited=limit is not None and included is None,
        billable=counter.billable,
        remaining=counter.remaining(included),
        in_plan=limit is not None,
    )
    if limit is not None and limit.beyond is not None:
        usage.beyond = plan_pb2.Beyond.Value(f"BEYOND_{limit.beyond.upper()}")
    if limit is not None and limit.beyond == "charge":
        currency = known.catalogs[under.catalog_version].currency
        usage.projected_overage_cost.CopyFrom(fields.to_proto_money(limit.price_of(counter.billable), currency))
    if limit is not None and limit.beyond == "grace":
        grace_ends_at = quota_rules.grace_end(counter, known.newest.grace_period)
        if grace_ends_at is not None:
            usage.grace_ends_at.FromDatetime(grace_ends_at)
    return usage
