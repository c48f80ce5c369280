"""The decision and the arithmetic of counting. Pure: no I/O, `now` is an argument.

What has been consumed of the included quantity is always `used - billable`: units that were charged do not take up
room again after a plan change.
"""

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from billing_svc.catalog import model
from billing_svc.quota import terms


class Reason(enum.StrEnum):
    """Why a decision fell as it did; NONE where there is nothing to add."""

    NONE = "NONE"
    OVERAGE = "OVERAGE"
    SOFT_LIMIT = "SOFT_LIMIT"
    GRACE = "GRACE"
    QUOTA_EXHAUSTED = "QUOTA_EXHAUSTED"
    GRACE_EXPIRED = "GRACE_EXPIRED"
    NOT_IN_PLAN = "NOT_IN_PLAN"


@dataclass(frozen=True, slots=True)
class Counter:
    """The totals of one account, meter and quota period, in the meter's unit."""

    used: int = 0
    reserved: int = 0
    billable: int = 0
    exceeded_at: datetime | None = None

    def free(self, included: int) -> int:
        """Return what is left of the included quantity, holds aside."""
        return max(0, included - (self.used - self.billable))

    def remaining(self, included: int | None) -> int:
        """Return what is left of the included quantity for new work; 0 if unlimited."""
        return 0 if included is None else max(0, self.free(included) - self.reserved)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to "may it take `units` now?", with what it rests on."""

    allowed: bool
    reason: Reason
    # How many of the units asked for lie beyond the included quantity, and what Stripe will charge for them.
    units_beyond: int = 0
    projected_cost: Decimal = Decimal(0)
    grace_ends_at: datetime | None = None


def decide(
    limit: model.Limit | None,
    included: int | None,
    counter: Counter,
    units: int,
    grace_ends_at: datetime | None,
    now: datetime,
) -> Decision:
    """Decide on `units` more, under a limit and its included quantity (None: unlimited).

    `grace_ends_at` is None where no grace has begun: the units asked for would begin it.
    """
    if limit is None:
        return Decision(allowed=False, reason=Reason.NOT_IN_PLAN, units_beyond=units)
    beyond = 0 if included is None else max(0, units - counter.remaining(included))
    if beyond == 0:
        return Decision(allowed=True, reason=Reason.NONE)
    if limit.beyond == "charge":
        cost = limit.price_of(beyond)
        return Decision(allowed=True, reason=Reason.OVERAGE, units_beyond=beyond, projected_cost=cost)
    if limit.beyond == "allow":
        return Decision(allowed=True, reason=Reason.SOFT_LIMIT, units_beyond=beyond)
    if limit.beyond == "grace":
        over = grace_ends_at is not None and now >= grace_ends_at
        reason = Reason.GRACE_EXPIRED if over else Reason.GRACE
        return Decision(allowed=not over, reason=reason, units_beyond=beyond, grace_ends_at=grace_ends_at)
    return Decision(allowed=False, reason=Reason.QUOTA_EXHAUSTED, units_beyond=beyond)


def grace_end(counter: Counter, grace_period: timedelta) -> datetime | None:
    """Return when the grace ends that began with the counter's first crossing; None if there was none."""
    return None if counter.exceeded_at is None else counter.exceeded_at + grace_period


def count(limit: model.Limit | None, included: int | None, counter: Counter, units: int, now: datetime) -> Counter:
    """Return the counter with `units` more used. Usage is a fact: it is counted whatever the limit says.

    Beyond the included quantity it is billable only where the limit charges; a meter outside the plan is not.
    """
    beyond = 0 if limit is None or included is None else max(0, units - counter.free(included))
    charged = beyond if limit is not None and limit.beyond == "charge" else 0
    return replace(
        counter,
        used=counter.used + units,
        billable=counter.billable + charged,
        exceeded_at=now if beyond and counter.exceeded_at is None else counter.exceeded_at,
    )


def allowing_plans(catalog: model.Catalog, current: terms.Terms, meter: str, units: int) -> tuple[str, ...]:
    """Return the catalog's plans that can be bought and whose fresh period would allow `units`, in its order."""
    return tuple(
        name
        for name, plan in catalog.plans.items()
        if name != current.plan.key
        and plan.sold
        and plan.prices
        and _admits(plan.limit(meter, pay_as_you_go=False), units)
    )


def _admits(limit: model.Limit | None, units: int) -> bool:
    if limit is None:
        return False
    included = limit.included_for(1)
    return included is None or limit.beyond in {"charge", "allow"} or units <= included
