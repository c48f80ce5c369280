"""Quota messages to and from what the rules speak."""

from collections.abc import Iterator
from datetime import datetime

from google.protobuf import timestamp_pb2

from billing.v1 import decision_pb2, plan_pb2, quota_pb2
from billing_svc import fields
from billing_svc.catalog import conversions as plans_conversions
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
    allowance: terms.Allowance,
    counter: rules.Counter,
    units: int,
    decision: rules.Decision,
) -> quota_pb2.CheckQuotaResponse:
    """Return the answer to a check."""
    response = quota_pb2.CheckQuotaResponse(
        decision=to_proto_decision(decision.allowed),
        reason=to_proto_reason(decision.reason),
        used=counter.shown_used,
        reserved=counter.reserved,
        included=allowance.included or 0,
        remaining=counter.remaining(allowance.included),
        unlimited=allowance.included is None,
        meter=known.meter,
        cost=units,
        overage=counter.billable,
        period_start=fields.to_proto_instant(under.period.start),
        period_end=fields.to_proto_instant(under.period.end),
        plan=under.plan.key,
        past_due=under.past_due,
        resets_at=to_proto_reset(decision, counter, under),
        grace_ends_at=fields.to_proto_instant(decision.grace_ends_at),
        upgrade_plans=upgrades(known, under, units, decision),
        pay_as_you_go=under.pay_as_you_go,
        message=_sentence(known.meter, under, allowance, counter, units, decision),
        catalog_version=under.catalog_version,
        overridden=allowance.overridden,
    )
    if decision.reason is rules.Reason.OVERAGE:
        currency = known.catalogs[under.catalog_version].currency
        response.projected_overage_cost.CopyFrom(fields.to_proto_money(decision.projected_cost, currency))
    if decision.retry_after is not None:
        response.retry_after.FromTimedelta(decision.retry_after)
    return response


def is_over_hard_limit(reason: rules.Reason) -> bool:
    """Say whether a limit that is hard, or whose grace is over, is passed."""
    return reason in {rules.Reason.QUOTA_EXHAUSTED, rules.Reason.GRACE_EXPIRED}


def to_proto_reset(
    decision: rules.Decision, counter: rules.Counter, under: terms.Terms
) -> timestamp_pb2.Timestamp | None:
    """Return when waiting would help; no period resets a gauge."""
    waits = not decision.allowed and is_over_hard_limit(decision.reason) and counter.level is None
    return fields.to_proto_instant(under.period.end) if waits else None


def upgrades(known: reading.Known, under: terms.Terms, units: int, decision: rules.Decision) -> tuple[str, ...]:
    """Return the plans that would have allowed what was denied for its plan."""
    if decision.allowed or decision.reason is rules.Reason.RATE_LIMITED:
        return ()
    wanted = units if known.facts.level == 0 else units + known.facts.level
    return rules.allowing_plans(known.newest, under, known.meter, wanted)


def _sentence(
    meter: str,
    under: terms.Terms,
    allowance: terms.Allowance,
    counter: rules.Counter,
    units: int,
    decision: rules.Decision,
) -> str:
    """Say for a log what was decided and on which numbers."""
    verdict = "allowed" if decision.allowed else "denied"
    if decision.reason is not rules.Reason.NONE:
        verdict += f" ({decision.reason.value})"
    of = "unlimited" if allowance.included is None else str(allowance.included)
    return (
        f"{units} {meter} on plan {under.plan.key}: {verdict}; {counter.shown_used} used and {counter.reserved} "
        f"reserved of {of} until {under.period.end:%Y-%m-%d %H:%M} UTC"
    )


def to_proto_explanation(
    known: reading.Known,
    under: terms.Terms,
    allowance: terms.Allowance,
    counter: rules.Counter,
    now: datetime,
) -> quota_pb2.Explanation:
    """Return what a decision was made of."""
    catalog = known.catalogs[under.catalog_version]
    subscription = under.subscription
    message = quota_pb2.Explanation(
        decided_at=fields.to_proto_instant(now),
        catalog=catalog.name,
        catalog_version=under.catalog_version,
        plan=under.plan.key,
        subscription_id=subscription.subscription_id if subscription else "",
        status=plans_conversions.to_proto_status(subscription.status if subscription else None),
        seats=under.quantity,
        pay_as_you_go=under.pay_as_you_go,
        quota_period=plans_conversions.to_proto_quota_period(catalog, under.plan, is_default=subscription is None),
        grace_began_at=fields.to_proto_instant(
            counter.exceeded_at if counter.is_exceeded(allowance.included) else None
        ),
    )
    anchor = subscription.anchor if subscription else known.facts.standing.created_at
    if message.quota_period != plan_pb2.QUOTA_PERIOD_CALENDAR_MONTH and anchor is not None:
        message.quota_period_anchor.FromDatetime(anchor)
    if allowance.overridden and known.facts.override is not None:
        message.override.CopyFrom(to_proto_override(known.meter, known.facts.override))
    if allowance.limit is not None:
        message.limit.CopyFrom(plans_conversions.to_proto_limit(catalog, known.meter, allowance.limit))
    rate_limit = under.plan.rate_limit_for(pay_as_you_go=under.pay_as_you_go)
    if rate_limit is not None:
        message.rate_limit.CopyFrom(plans_conversions.to_proto_rate_limit(rate_limit))
    message.steps.extend(_steps(known, under, allowance, counter))
    return message


def to_proto_override(meter: str, override: terms.Override) -> quota_pb2.Override:
    """Return what an account has in place of what its plan includes."""
    return quota_pb2.Override(
        meter=meter,
        included=override.included or 0,
        unlimited=override.included is None,
        expires_at=fields.to_proto_instant(override.expires_at),
        note=override.note,
        set_by=override.set_by,
        set_at=fields.to_proto_instant(override.set_at),
    )


def _steps(
    known: reading.Known, under: terms.Terms, allowance: terms.Allowance, counter: rules.Counter
) -> Iterator[str]:
    if under.subscription is None:
        yield f"no subscription gives a plan now, so the default plan {under.plan.key} of the newest catalog holds"
    else:
        yield (
            f"subscription {under.subscription.subscription_id} ({under.subscription.status}) gives plan "
            f"{under.plan.key} as sold under catalog version {under.catalog_version}"
        )
    if under.pay_as_you_go and under.plan.pay_as_you_go is not None:
        yield f"pay-as-you-go is on, so its limits stand before the plan's: {under.plan.pay_as_you_go.name}"
    yield f"the quota period is {under.period.start:%Y-%m-%d %H:%M:%S} to {under.period.end:%Y-%m-%d %H:%M:%S} UTC"
    if allowance.limit is None:
        yield f"the plan has no limit for {known.meter}"
        return
    of = "unlimited" if allowance.included is None else f"{allowance.included} included"
    source = "an override of the account" if allowance.overridden else "the plan"
    yield f"{known.meter}: {of} by {source}, beyond that {allowance.limit.beyond or 'nothing'}"
    yield (
        f"{counter.shown_used} used, {counter.billable} of them billable; {counter.consumed} take up room, "
        f"{counter.reserved} are held, {counter.remaining(allowance.included)} remain"
    )
