"""Quota messages to and from what the rules speak."""

from billing.v1 import decision_pb2, quota_pb2
from billing_svc import fields
from billing_svc.quota import reading, rules, terms

_REASONS = {
    reason: decision_pb2.DecisionReason.Value(f"DECISION_REASON_{reason.name}")
    for reason in rules.Reason
    if reason is not rules.Reason.NONE
}


def from_proto_check(request: quota_pb2.CheckQuotaRequest) -> tuple[reading.Asked, int]:
    """Return what is asked, and how many of it. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.meter_or_operation(request.meter, request.operation)
    quantity = check.quantity("quantity", request.quantity) if request.HasField("quantity") else 1
    if request.reserve:
        check.identifier("request_id", request.request_id)
    check.done()
    return reading.Asked(request.account_id, request.meter, request.operation), quantity


def to_proto_reason(reason: rules.Reason) -> decision_pb2.DecisionReason.ValueType:
    """Return a reason as its enum value."""
    return decision_pb2.DECISION_REASON_UNSPECIFIED if reason is rules.Reason.NONE else _REASONS[reason]


def to_proto_decision(allowed: bool) -> decision_pb2.Decision.ValueType:  # noqa: FBT001 - the one value it converts
    """Return a decision as its enum value."""
    return decision_pb2.DECISION_ALLOWED if allowed else decision_pb2.DECISION_DENIED


def to_proto_check(
    known: reading.Known,
    under: terms.Terms,
    counter: rules.Counter,
    units: int,
    decision: rules.Decision,
) -> quota_pb2.CheckQuotaResponse:
    """Return the answer to a check."""
    meter = known.meter
    limit, included = under.limit(meter), under.included(meter)
    denied = not decision.allowed
    response = quota_pb2.CheckQuotaResponse(
        decision=to_proto_decision(decision.allowed),
        reason=to_proto_reason(decision.reason),
        used=counter.used,
        reserved=counter.reserved,
        included=included or 0,
        remaining=counter.remaining(included),
        unlimited=limit is not None and included is None,
        meter=meter,
        cost=units,
        overage=counter.billable,
        period_start=fields.to_proto_instant(under.period.start),
        period_end=fields.to_proto_instant(under.period.end),
        plan=under.plan.key,
        past_due=under.past_due,
        resets_at=fields.to_proto_instant(under.period.end if denied and resets(decision.reason) else None),
        grace_ends_at=fields.to_proto_instant(decision.grace_ends_at),
        upgrade_plans=rules.allowing_plans(known.newest, under, meter, units) if denied else (),
        pay_as_you_go=under.pay_as_you_go,
        message=_sentence(under, meter, included, counter, units, decision),
        catalog_version=under.catalog_version,
    )
    if decision.reason is rules.Reason.OVERAGE:
        currency = known.catalogs[under.catalog_version].currency
        response.projected_overage_cost.CopyFrom(fields.to_proto_money(decision.projected_cost, currency))
    return response


def resets(reason: rules.Reason) -> bool:
    """Say whether waiting for the next period would help."""
    return reason in {rules.Reason.QUOTA_EXHAUSTED, rules.Reason.GRACE_EXPIRED}


def _sentence(
    under: terms.Terms,
    meter: str,
    included: int | None,
    counter: rules.Counter,
    units: int,
    decision: rules.Decision,
) -> str:
    """Say for a log what was decided and on which numbers."""
    verdict = "allowed" if decision.allowed else "denied"
    if decision.reason is not rules.Reason.NONE:
        verdict += f" ({decision.reason.value})"
    of = "unlimited" if included is None else str(included)
    return (
        f"{units} {meter} on plan {under.plan.key}: {verdict}; {counter.used} used and {counter.reserved} reserved "
        f"of {of} until {under.period.end:%Y-%m-%d %H:%M} UTC"
    )
