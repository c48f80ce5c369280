"""The decision and the arithmetic of counting. Pure: no I/O, `now` is an argument.

The part of the included quantity that is consumed is always `used - billable`: units that were charged do not take up
room again after a change of plan. A gauge takes up its level, and is billed by its peak.
"""

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from billing_svc.catalog import model, parts
from billing_svc.metering.quota import terms
from billing_svc.platform import values
from billing_svc.pricing import rules as pricing_rules

# The most units of a single event, hold or correction; millions of such events fit an int64 counter.
UNITS_MAX = 10**12


class Reason(enum.StrEnum):
    """The reason of a decision; NONE if it was allowed within the included quantity."""

    NONE = "NONE"
    OVERAGE = "OVERAGE"
    SOFT_LIMIT = "SOFT_LIMIT"
    GRACE = "GRACE"
    QUOTA_EXHAUSTED = "QUOTA_EXHAUSTED"
    GRACE_EXPIRED = "GRACE_EXPIRED"
    RATE_LIMITED = "RATE_LIMITED"
    NOT_IN_PLAN = "NOT_IN_PLAN"
    RESERVATION_CLOSED = "RESERVATION_CLOSED"
    NOT_CHARGEABLE = "NOT_CHARGEABLE"


@values.value
class Counter:
    """The totals of one account, meter and quota period, in the meter's unit.

    Of a gauge, `used` is the period's peak and `level` the present level; of a consumable, `level` is None.
    """

    used: int = 0
    reserved: int = 0
    billable: int = 0
    exceeded_at: datetime | None = None
    level: int | None = None

    def holding(self, reserved: int) -> "Counter":
        """Return the counter with other reserved units; itself if they are the same."""
        if reserved == self.reserved:
            return self
        return replace(self, reserved=reserved)

    @property
    def shown_used(self) -> int:
        """The usage that callers are told; of a gauge its level."""
        return self.used if self.level is None else self.level

    @property
    def consumed(self) -> int:
        """The units that take up room in the included quantity."""
        return self.used - self.billable if self.level is None else self.level

    def free(self, included: int) -> int:
        """Return the units left of the included quantity, without regard to reserved units."""
        return max(0, included - self.consumed)

    def remaining(self, included: int | None) -> int:
        """Return the units left of the included quantity for new work; 0 if it is unlimited."""
        if included is None:
            return 0
        return max(0, included - self.consumed - self.reserved)

    def is_exceeded(self, included: int | None) -> bool:
        """Say whether more than the included quantity is consumed."""
        return included is not None and self.consumed > included

    def grace_ends_at(self, included: int | None, grace_period: timedelta) -> datetime | None:
        """Return the end of the grace, which begins when the included quantity is exceeded; None before that."""
        if self.exceeded_at is None or not self.is_exceeded(included):
            return None
        return self.exceeded_at + grace_period


@values.value
class RateWindow:
    """An account's present rate window: when it opened, and how many checks it has admitted."""

    start: datetime
    admitted: int

    def is_over(self, limit: parts.RateLimit, now: datetime) -> bool:
        """Say whether the next check opens a new window."""
        return now >= self.start + limit.window

    def room(self, limit: parts.RateLimit, now: datetime) -> int:
        """Return how many more checks the window admits; the number only falls until the window is over."""
        return limit.requests if self.is_over(limit, now) else max(0, limit.requests - self.admitted)


@dataclass(slots=True)
class RateRequests:
    """Checks of an account to be counted against its rate limit; `is_first`: the account has no window yet."""

    limit: parts.RateLimit
    is_first: bool
    number: int = 0
    given: int = 0


@values.value
class Decision:
    """Whether an account may take some units now, and why."""

    allowed: bool
    reason: Reason
    # How many of the units lie beyond the included quantity, and the amount that Stripe will charge for them.
    units_beyond: int = 0
    projected_cost: Decimal = Decimal(0)
    grace_ends_at: datetime | None = None
    retry_after: timedelta | None = None


_FITS = Decision(allowed=True, reason=Reason.NONE)


def decide(
    allowance: terms.Allowance, counter: Counter, units: int, grace_period: timedelta, now: datetime
) -> Decision:
    """Decide whether `units` more may be taken."""
    limit, included = allowance.limit, allowance.included
    if limit is None:
        return Decision(allowed=False, reason=Reason.NOT_IN_PLAN, units_beyond=units)
    beyond = 0 if included is None else units - counter.remaining(included)
    if included is None or beyond <= 0:
        return _FITS
    if limit.beyond == "charge":
        return _decide_charge(allowance, limit, included, counter, units, beyond)
    if limit.beyond == "allow":
        return Decision(allowed=True, reason=Reason.SOFT_LIMIT, units_beyond=beyond)
    if limit.beyond == "grace":
        grace_ends_at = counter.grace_ends_at(included, grace_period)
        over = grace_ends_at is not None and now >= grace_ends_at
        reason = Reason.GRACE_EXPIRED if over else Reason.GRACE
        return Decision(allowed=not over, reason=reason, units_beyond=beyond, grace_ends_at=grace_ends_at)
    return Decision(allowed=False, reason=Reason.QUOTA_EXHAUSTED, units_beyond=beyond)


def count(allowance: terms.Allowance, counter: Counter, units: int, now: datetime) -> Counter:
    """Return the counter with `units` more. Usage has happened, so it is counted even beyond the limit.

    Units beyond the included quantity are billable if the limit charges; those of a meter outside the plan never are.
    """
    included = allowance.included
    if counter.level is not None:
        after = raise_peak(allowance, replace(counter, level=counter.level + units))
    else:
        billable = counter.billable
        if included is not None and allowance.charges:
            billable += max(0, units - counter.free(included))
        after = Counter(
            used=counter.used + units, reserved=counter.reserved, billable=billable, exceeded_at=counter.exceeded_at
        )
    if not after.is_exceeded(included):
        # A larger plan or an override has ended the excess, and with it the grace.
        return after if after.exceeded_at is None else replace(after, exceeded_at=None)
    is_crossing = after.exceeded_at is None or not counter.is_exceeded(included)
    return replace(after, exceeded_at=now) if is_crossing else after


def count_held(
    promised: terms.Allowance, in_force: terms.Allowance, counter: Counter, units: int, now: datetime
) -> Counter:
    """Return the counter with `units` more under the allowance that their hold carries.

    The terms in force, which apply to the next units, decide whether a grace has begun.
    """
    after = count(promised, counter, units, now)
    return replace(after, exceeded_at=counter.exceeded_at if counter.is_exceeded(in_force.included) else None)


def raise_peak(allowance: terms.Allowance, counter: Counter) -> Counter:
    """Return a gauge's counter with the peak raised to its level; nothing lowers the peak of a period."""
    level = counter.level or 0
    excess = _peak_excess(counter, level, allowance.included or 0)
    return replace(
        counter,
        used=max(counter.used, level),
        billable=counter.billable + (excess if allowance.charges and allowance.included is not None else 0),
    )


def correct(counter: Counter, units: int, included: int | None) -> Counter:
    """Return a consumable's counter with `units` less; billable units are taken back first.

    If that ends the excess, it ends the grace: the next excess begins a new grace.
    """
    after = replace(counter, used=counter.used - units, billable=counter.billable - min(units, counter.billable))
    return after if after.is_exceeded(included) else replace(after, exceeded_at=None)


def rate_limited(limit: parts.RateLimit, opened_at: datetime, now: datetime) -> Decision:
    """Return the denial of a check whose rate window is full."""
    retry_after = max(timedelta(), opened_at + limit.window - now)
    return Decision(allowed=False, reason=Reason.RATE_LIMITED, retry_after=retry_after)


def allowing_plans(catalog: model.Catalog, current: terms.EffectiveTerms, meter: str, units: int) -> tuple[str, ...]:
    """Return the plans on sale whose new period would allow `units`, in the catalog's order."""
    return tuple(
        name
        for name, plan in catalog.plans.items()
        if name != current.plan.key
        and plan.sold
        and plan.prices
        and _admits(plan.limit(meter, pay_as_you_go=False), units)
    )


def _decide_charge(
    allowance: terms.Allowance, limit: parts.Limit, included: int, counter: Counter, units: int, beyond: int
) -> Decision:
    if allowance.is_uncharged:
        return Decision(allowed=False, reason=Reason.NOT_CHARGEABLE, units_beyond=beyond)
    if allowance.charged_units_max is not None:
        held_beyond = max(0, counter.reserved - counter.free(included))
        if counter.billable + held_beyond + beyond > allowance.charged_units_max:
            return Decision(allowed=False, reason=Reason.QUOTA_EXHAUSTED, units_beyond=beyond)
    charged = beyond if counter.level is None else _peak_excess(counter, counter.level + units, included)
    return Decision(
        allowed=True, reason=Reason.OVERAGE, units_beyond=beyond, projected_cost=pricing_rules.overage(limit, charged)
    )


def _peak_excess(counter: Counter, level: int, included: int) -> int:
    """Return by how much a level raises the peak's excess over the included quantity."""
    return max(0, level - max(counter.used, included))


def _admits(limit: parts.Limit | None, units: int) -> bool:
    if limit is None:
        return False
    included = limit.included_for(1)
    return included is None or limit.beyond in {"charge", "allow"} or units <= included
