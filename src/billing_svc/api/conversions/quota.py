"""Converts quota messages to and from the types of `metering`."""

import functools
from collections.abc import Iterator
from datetime import datetime

from google.protobuf import timestamp_pb2

from billing.v1 import decision_pb2, plan_pb2, quota_pb2
from billing_svc.api import fields
from billing_svc.api.conversions import catalog as catalog_conversions
from billing_svc.metering.quota import check_quota, holds, lookup, rules, terms
from billing_svc.metering.reservations import hold_units

RESERVATION_ID_LENGTH_MAX = 64

# Denials that another plan might have avoided.
_MENDED_BY_PLANS = frozenset({rules.Reason.QUOTA_EXHAUSTED, rules.Reason.GRACE_EXPIRED, rules.Reason.NOT_IN_PLAN})
_REASONS = {
    reason: decision_pb2.DecisionReason.Value(f"DECISION_REASON_{reason.name}")
    for reason in rules.Reason
    if reason is not rules.Reason.NONE
}


def from_proto_check(request: quota_pb2.CheckQuotaRequest, caller: str) -> check_quota.QuotaQuestion:
    """Return the question of a check. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.meter_or_operation(request.meter, request.operation)
    quantity = check.quantity("quantity", request.quantity) if request.HasField("quantity") else 1
    hold = None
    if request.reserve:
        check.identifier("request_id", request.request_id)
        ttl = holds.TTL_DEFAULT
        if request.HasField("reservation_ttl"):
            ttl = check.duration("reservation_ttl", request.reservation_ttl)
            if not holds.TTL_MIN <= ttl <= holds.TTL_MAX:
                check.refuse("reservation_ttl", f"is {ttl.total_seconds():g} s; must be 1 second to 24 hours")
        hold = holds.Hold(request.request_id, ttl, caller)
    check.done()
    return check_quota.QuotaQuestion(
        lookup.MeterQuery(request.account_id, request.meter, request.operation), quantity, hold
    )


def from_proto_release(request: quota_pb2.ReleaseReservationRequest) -> tuple[str, str]:
    """Return the account and the reservation to release. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.identifier("reservation_id", request.reservation_id, RESERVATION_ID_LENGTH_MAX)
    check.done()
    return request.account_id, request.reservation_id


def to_proto_released(released: hold_units.ReleaseOutcome) -> quota_pb2.ReleaseReservationResponse:
    """Return a reservation's state after its release."""
    return quota_pb2.ReleaseReservationResponse(
        state=to_proto_state(released.reservation.state),
        released=released.released,
        quantity=released.reservation.units,
        reserved=released.reserved,
        meter=released.reservation.meter,
    )


def to_proto_state(state: holds.HoldState) -> quota_pb2.ReservationState.ValueType:
    """Return a reservation's state as its enum value."""
    return quota_pb2.ReservationState.Value(f"RESERVATION_STATE_{state.name}")


def to_proto_reason(reason: rules.Reason) -> decision_pb2.DecisionReason.ValueType:
    """Return a reason as its enum value."""
    return decision_pb2.DECISION_REASON_UNSPECIFIED if reason is rules.Reason.NONE else _REASONS[reason]


def to_proto_decision(allowed: bool) -> decision_pb2.Decision.ValueType:  # noqa: FBT001 - the converted value
    """Return a decision as its enum value."""
    return decision_pb2.DECISION_ALLOWED if allowed else decision_pb2.DECISION_DENIED


def to_proto_check(checked: check_quota.QuotaAnswer | check_quota.RepeatedAnswer) -> quota_pb2.CheckQuotaResponse:
    """Return the answer to a check."""
    if isinstance(checked, check_quota.RepeatedAnswer):
        return to_proto_repeated(checked)
    known, under, allowance = checked.known, checked.under, checked.allowance
    counter, decision = checked.counter, checked.decision
    # Set field by field, because that takes half the time of keyword arguments; other fields keep their defaults.
    response = quota_pb2.CheckQuotaResponse()
    response.decision = to_proto_decision(decision.allowed)
    response.used = counter.shown_used
    response.remaining = counter.remaining(allowance.included)
    response.meter = known.meter
    response.cost = checked.units
    response.plan = under.plan.key
    response.message = _sentence(
        checked.units, known.meter, under.plan.key, decision, counter, allowance.included, under.period.end
    )
    response.catalog_version = under.catalog_version
    response.period_start.CopyFrom(fields.to_proto_timestamp(under.period.start))
    response.period_end.CopyFrom(fields.to_proto_timestamp(under.period.end))
    if allowance.included is None:
        response.unlimited = True
    else:
        response.included = allowance.included
    if counter.reserved:
        response.reserved = counter.reserved
    if counter.billable:
        response.overage = counter.billable
    if under.past_due:
        response.past_due = True
    if under.pay_as_you_go:
        response.pay_as_you_go = True
    if allowance.overridden:
        response.overridden = True
    if decision.reason is not rules.Reason.NONE:
        _add_reason(response, checked)
    if checked.reservation is not None:
        _add_reservation(response, checked.reservation)
    return response


def to_proto_repeated(repeated: check_quota.RepeatedAnswer) -> quota_pb2.CheckQuotaResponse:
    """Return the first answer to a reserving check again, with its reservation as it is now."""
    first, reservation, decision = repeated.first, repeated.reservation, repeated.decision
    counter = rules.Counter(used=first.used, reserved=first.reserved)
    response = quota_pb2.CheckQuotaResponse(
        decision=to_proto_decision(decision.allowed),
        reason=to_proto_reason(decision.reason),
        used=first.used,
        reserved=first.reserved,
        included=first.included or 0,
        remaining=first.remaining,
        unlimited=first.included is None,
        meter=reservation.meter,
        cost=reservation.units,
        overage=first.billable,
        period_start=fields.to_proto_instant(reservation.period_start),
        period_end=fields.to_proto_instant(first.period_end),
        plan=first.plan,
        past_due=first.past_due,
        grace_ends_at=fields.to_proto_instant(decision.grace_ends_at),
        pay_as_you_go=first.pay_as_you_go,
        message=_sentence(
            *(reservation.units, reservation.meter, first.plan, decision, counter, first.included, first.period_end)
        ),
        catalog_version=first.catalog_version,
        overridden=first.overridden,
    )
    if decision.reason is rules.Reason.OVERAGE:
        currency = repeated.catalog.currency
        response.projected_overage_cost.CopyFrom(fields.to_proto_money(decision.projected_cost, currency))
    _add_reservation(response, reservation)
    return response


def _add_reservation(response: quota_pb2.CheckQuotaResponse, reservation: holds.Reservation) -> None:
    response.reservation_id = reservation.reservation_id
    # Shared by the holds of a batch.
    response.reservation_expires_at.CopyFrom(fields.to_proto_timestamp(reservation.expires_at))
    response.reservation_state = to_proto_state(reservation.state)


def _add_reason(response: quota_pb2.CheckQuotaResponse, checked: check_quota.QuotaAnswer) -> None:
    under, counter, decision = checked.under, checked.counter, checked.decision
    response.reason = to_proto_reason(decision.reason)
    if (resets_at := to_proto_reset(decision, counter, under)) is not None:
        response.resets_at.CopyFrom(resets_at)
    if decision.grace_ends_at is not None:
        response.grace_ends_at.FromDatetime(decision.grace_ends_at)
    response.upgrade_plans.extend(upgrades(checked.known, under, checked.units, decision))
    if decision.reason is rules.Reason.OVERAGE:
        currency = under.catalog.currency
        response.projected_overage_cost.CopyFrom(fields.to_proto_money(decision.projected_cost, currency))
    if decision.retry_after is not None:
        response.retry_after.FromTimedelta(decision.retry_after)


def is_over_hard_limit(reason: rules.Reason) -> bool:
    """Say whether the reason is an exceeded hard limit, or an exceeded limit whose grace period is over."""
    return reason is rules.Reason.QUOTA_EXHAUSTED or reason is rules.Reason.GRACE_EXPIRED


def to_proto_reset(
    decision: rules.Decision, counter: rules.Counter, under: terms.EffectiveTerms
) -> timestamp_pb2.Timestamp | None:
    """Return until when the caller has to wait; None if waiting does not help (no period resets a gauge)."""
    waits = not decision.allowed and is_over_hard_limit(decision.reason) and counter.level is None
    return fields.to_proto_instant(under.period.end) if waits else None


def upgrades(
    known: lookup.MeterState, under: terms.EffectiveTerms, units: int, decision: rules.Decision
) -> tuple[str, ...]:
    """Return the plans that would have allowed a denied request; empty if the plan is not the reason."""
    if decision.allowed or decision.reason not in _MENDED_BY_PLANS:
        return ()
    wanted = units if known.facts.level == 0 else units + known.facts.level
    return rules.allowing_plans(known.newest, under, known.meter, wanted)


def _sentence(
    units: int,
    meter: str,
    plan: str,
    decision: rules.Decision,
    counter: rules.Counter,
    included: int | None,
    until: datetime,
) -> str:
    """Return a sentence for the caller's log: the decision and its numbers."""
    verdict = "allowed" if decision.allowed else "denied"
    if decision.reason is not rules.Reason.NONE:
        verdict += f" ({decision.reason.value})"
    of = "unlimited" if included is None else str(included)
    return (
        f"{units} {meter} on plan {plan}: {verdict}; {counter.shown_used} used and "
        f"{counter.reserved} reserved of {of} until {_to_minutes(until)}"
    )


# Cached: most accounts share the ends of their periods, and formatting takes as long as the rest of the sentence.
@functools.lru_cache(maxsize=4096)
def _to_minutes(instant: datetime) -> str:
    return instant.isoformat(timespec="minutes")


def to_proto_explanation(checked: check_quota.QuotaAnswer | check_quota.RepeatedAnswer) -> quota_pb2.Explanation:
    """Return the explanation of a decision: its terms, numbers and steps; of a repeated check, what was stored."""
    if isinstance(checked, check_quota.RepeatedAnswer):
        first = checked.first
        return quota_pb2.Explanation(
            decided_at=fields.to_proto_instant(checked.reservation.created_at),
            catalog=checked.catalog.name,
            catalog_version=first.catalog_version,
            plan=first.plan,
            seats=first.quantity,
            pay_as_you_go=first.pay_as_you_go,
            steps=["the request_id was answered before; this is that answer, and the present state of its reservation"],
        )
    known, under, allowance, counter = checked.known, checked.under, checked.allowance, checked.counter
    catalog = under.catalog
    subscription = under.subscription
    message = quota_pb2.Explanation(
        decided_at=fields.to_proto_instant(checked.decided_at),
        catalog=catalog.name,
        catalog_version=under.catalog_version,
        plan=under.plan.key,
        subscription_id=subscription.subscription_id if subscription else "",
        status=catalog_conversions.to_proto_status(subscription.status if subscription else None),
        seats=under.quantity,
        pay_as_you_go=under.pay_as_you_go and under.plan.pay_as_you_go is not None,
        quota_period=catalog_conversions.to_proto_quota_period(catalog, under.plan, is_default=subscription is None),
        grace_began_at=fields.to_proto_instant(
            counter.exceeded_at if counter.is_exceeded(allowance.included) else None
        ),
    )
    anchor = subscription.anchor if subscription else known.facts.account_state.created_at
    if message.quota_period != plan_pb2.QUOTA_PERIOD_CALENDAR_MONTH and anchor is not None:
        message.quota_period_anchor.FromDatetime(anchor)
    if allowance.overridden and known.facts.override is not None:
        message.override.CopyFrom(to_proto_override(known.meter, known.facts.override))
    # The plan's limit. For an override of a meter that is not part of the plan there is none.
    limit = under.plan.limit(known.meter, pay_as_you_go=under.pay_as_you_go)
    if limit is not None:
        message.limit.CopyFrom(catalog_conversions.to_proto_limit(catalog, known.meter, limit))
    if checked.rate_limit is not None:
        message.rate_limit.CopyFrom(catalog_conversions.to_proto_rate_limit(checked.rate_limit))
        message.rate_limit_used = checked.rate_limit_used
    message.steps.extend(_steps(known, under, allowance, counter))
    return message


def to_proto_override(meter: str, override: terms.Override) -> quota_pb2.Override:
    """Return an account's override of a plan's included quantity."""
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
    known: lookup.MeterState, under: terms.EffectiveTerms, allowance: terms.Allowance, counter: rules.Counter
) -> Iterator[str]:
    if under.subscription is None:
        yield f"no subscription gives a plan now, so the default plan {under.plan.key} of the newest catalog applies"
    else:
        yield (
            f"subscription {under.subscription.subscription_id} ({under.subscription.status}) gives plan "
            f"{under.plan.key} as sold under catalog version {under.catalog_version}"
        )
    if under.pay_as_you_go and under.plan.pay_as_you_go is not None:
        yield f"pay-as-you-go is on, so its limits replace the plan's: {under.plan.pay_as_you_go.name}"
    yield f"the quota period is {under.period.start:%Y-%m-%d %H:%M:%S} to {under.period.end:%Y-%m-%d %H:%M:%S} UTC"
    if allowance.limit is None:
        yield f"the plan has no limit for {known.meter}"
        return
    of = "unlimited" if allowance.included is None else f"{allowance.included} included"
    source = "an override of the account" if allowance.overridden else "the plan"
    yield f"{known.meter}: {of} by {source}, beyond that {allowance.limit.beyond or 'nothing'}"
    yield (
        f"{counter.shown_used} used, {counter.billable} of them billable; {counter.consumed} count against the limit, "
        f"{counter.reserved} are held, {counter.remaining(allowance.included)} remain"
    )
