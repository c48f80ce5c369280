"""The decision and the arithmetic of counting. Pure: no I/O, `now` is an argument.

What has been consumed of the included quantity is always `used - billable`: units that were charged do not take up
room again after a plan change. A gauge takes up its level, and is billed by its peak.
"""

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from billing_svc.catalog import model, parts
from billing_svc.metering.quota import terms
from billing_svc.platform import values

# The most units of a single event, hold or correction: millions of such events fit an int64 counter.
UNITS_MAX = 10**12


class Reason(enum.StrEnum):
    """Why a decision fell as it did; NONE where there is nothing to add."""

    NONE = "NONE"
    OVERAGE = "OVERAGE"
    SOFT_LIMIT = "SOFT_LIMIT"
    GRACE = "GRACE"
    QUOTA_EXHAUSTED = "QUOTA_EXHAUSTED"
    GRACE_EXPIRED = "GRACE_EXPIRED"
    RATE_LIMITED = "RATE_LIMITED"
    NOT_IN_PLAN = "NOT_IN_PLAN"
    RESERVATION_CLOSED = "RESERVATION_CLOSED"


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
        """Return it with other units held; for most, which hold none, itself."""
        if reserved == self.reserved:
            return self
        return replace(self, reserved=reserved)

    @property
    def shown_used(self) -> int:
        """What callers are told is used: a gauge's level."""
        return self.used if self.level is None else self.level

    @property
    def consumed(self) -> int:
        """What takes up room in the included quantity."""
        return self.used - self.billable if self.level is None else self.level

    def free(self, included: int) -> int:
        """Return what is left of the included quantity, holds aside."""
        return max(0, included - self.consumed)

    def remaining(self, included: int | None) -> int:
        """Return what is left of the included quantity for new work; 0 if unlimited."""
        if included is None:
            return 0
        return max(0, included - self.consumed - self.reserved)

    def is_exceeded(self, included: int | None) -> bool:
        """Say whether more than the included quantity is consumed."""
        return included is not None and self.consumed > included

    def grace_ends_at(self, included: int | None, grace_period: timedelta) -> datetime | None:
        """Return when the grace ends that the first crossing began; None while nothing is exceeded."""
        if self.exceeded_at is None or not self.is_exceeded(included):
            return None
        return self.exceeded_at + grace_period


@values.value
class RateWindow:
    """An account's present rate window: when it opened, and how many checks it has admitted."""

    start: datetime
    admitted: int

    def is_over(self, limit: parts.RateLimit, now: datetime) -> bool:
        """Say whether the next check opens a new one."""
        return now >= self.start + limit.window

    def room(self, limit: parts.RateLimit, now: datetime) -> int:
        """Return how many more checks it admits; until it is over, that only shrinks."""
        return limit.requests if self.is_over(limit, now) else max(0, limit.requests - self.admitted)


@dataclass(slots=True)
class RateRequests:
    """Checks of one account that ask to be admitted by its rate limit; `is_first`: it has no window yet."""

    limit: parts.RateLimit
    is_first: bool
    number: int = 0
    given: int = 0


@values.value
class Decision:
    """The answer to "may it take `units` now?", with what it rests on."""

    allowed: bool
    reason: Reason
    # How many of the units asked for lie beyond the included quantity, and what Stripe will charge for them.
    units_beyond: int = 0
    projected_cost: Decimal = Decimal(0)
    grace_ends_at: datetime | None = None
    retry_after: timedelta | None = None


_FITS = Decision(allowed=True, reason=Reason.NONE)


def decide(
    allowance: terms.Allowance, counter: Counter, units: int, grace_period: timedelta, now: datetime
) -> Decision:
    """Decide on `units` more."""
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
    """Return the counter with `units` more. Usage is a fact: it is counted whatever the limit says.

    Beyond the included quantity it is billable only where the limit charges; a meter outside the plan is not.
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
        # A bigger plan or an override has ended the excess, and with it the grace.
        return after if after.exceeded_at is None else replace(after, exceeded_at=None)
    is_crossing = after.exceeded_at is None or not counter.is_exceeded(included)
    return replace(after, exceeded_at=now) if is_crossing else after


def raise_peak(allowance: terms.Allowance, counter: Counter) -> Counter:
    """Return a gauge's counter with its peak at its level or above; a period opens by this, and nothing lowers it."""
    level = counter.level or 0
    excess = _peak_excess(counter, level, allowance.included or 0)
    return replace(
        counter,
        used=max(counter.used, level),
        billable=counter.billable + (excess if allowance.charges and allowance.included is not None else 0),
    )


def correct(counter: Counter, units: int, included: int | None) -> Counter:
    """Return a consumable's counter with `units` less; what was charged is taken back first.

    Where that ends the excess, it ends the grace: the next crossing begins another one.
    """
    after = replace(counter, used=counter.used - units, billable=counter.billable - min(units, counter.billable))
    return after if after.is_exceeded(included) else replace(after, exceeded_at=None)


def rate_limited(limit: parts.RateLimit, opened_at: datetime, now: datetime) -> Decision:
    """Return the denial by a rate window that is full."""
    retry_after = max(timedelta(), opened_at + limit.window - now)
    return Decision(allowed=False, reason=Reason.RATE_LIMITED, retry_after=retry_after)


def allowing_plans(catalog: model.Catalog, current: terms.EffectiveTerms, meter: str, units: int) -> tuple[str, ...]:
    """Return the catalog's plans that can be bought and whose fresh period would allow `units`, in its order."""
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
    if allowance.charged_units_max is not None:
        held_beyond = max(0, counter.reserved - counter.free(included))
        if counter.billable + held_beyond + beyond > allowance.charged_units_max:
            return Decision(allowed=False, reason=Reason.QUOTA_EXHAUSTED, units_beyond=beyond)
    charged = beyond if counter.level is None else _peak_excess(counter, counter.level + units, included)
    return Decision(allowed=True, reason=Reason.OVERAGE, units_beyond=beyond, projected_cost=limit.price_of(charged))


def _peak_excess(counter: Counter, level: int, included: int) -> int:
    """Return by how much a level raises the peak's excess over the included quantity."""
    return max(0, level - max(counter.used, included))


def _admits(limit: parts.Limit | None, units: int) -> bool:
    if limit is None:
        return False
    included = limit.included_for(1)
    return included is None or limit.beyond in {"charge", "allow"} or units <= included
