"""What a subscription at Stripe means for the account's plan. Pure: no I/O, `now` is an argument."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing_svc.stripe import reading

# Statuses that give the plan; past_due is flagged beside.
GIVING = frozenset({"trialing", "active", "past_due"})
# Statuses that suspend it: the default plan holds until it gives again.
SUSPENDED = frozenset({"unpaid", "paused"})
# It never got as far as giving anything.
STILLBORN = frozenset({"incomplete", "incomplete_expired"})
# Nothing comes after these.
OVER = frozenset({"canceled", "incomplete_expired"})

# Far above any number of seats; an int64 holds it times any limit.
QUANTITY_MAX = 10**9


@dataclass(frozen=True, slots=True)
class Item:
    """One price of a subscription, with the billing period that it is in."""

    item_id: str
    price_id: str
    quantity: int
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True)
class Phase:
    """What a schedule at Stripe makes of a subscription from an instant on: prices and how many of each."""

    starts_at: datetime
    prices: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StripeSubscription:
    """A subscription as fetched, typed."""

    subscription_id: str
    customer_id: str
    status: str
    items: tuple[Item, ...]
    metadata: Mapping[str, str]
    anchor: datetime
    start_date: datetime
    trial_end: datetime | None
    cancel_at_period_end: bool
    cancel_at: datetime | None
    canceled_at: datetime | None
    ended_at: datetime | None
    schedule_id: str | None = None
    # What comes after the schedule's present phase, if it came expanded.
    next_phase: Phase | None = None

    @property
    def is_over(self) -> bool:
        """Say whether it has ended for good."""
        return self.status in OVER

    @property
    def will_end(self) -> bool:
        """Say whether its end is scheduled; either field says so."""
        return self.cancel_at_period_end or self.cancel_at is not None


@dataclass(frozen=True, slots=True)
class Interval:
    """The half-open interval in which a subscription gives its plan; equal bounds: never."""

    start: datetime
    end: datetime | None


def from_stripe(data: Mapping[str, Any]) -> StripeSubscription:
    """Read a subscription of any API version that is still about; raises ValueError on what is none.

    Billing periods are on the items since 2025-03-31, on the subscription before, and on both in between.
    """
    try:
        return StripeSubscription(
            subscription_id=reading.text(data["id"]),
            customer_id=reading.id_of(data["customer"]),
            status=reading.text(data["status"]),
            items=tuple(_item(item, data) for item in data["items"]["data"]),
            metadata={str(key): str(value) for key, value in (data.get("metadata") or {}).items()},
            anchor=reading.instant(data["billing_cycle_anchor"]),
            start_date=reading.instant(data.get("start_date") or data["created"]),
            trial_end=reading.optional_instant(data.get("trial_end")),
            cancel_at_period_end=bool(data.get("cancel_at_period_end")),
            cancel_at=reading.optional_instant(data.get("cancel_at")),
            canceled_at=reading.optional_instant(data.get("canceled_at")),
            ended_at=reading.optional_instant(data.get("ended_at")),
            schedule_id=reading.id_of(data["schedule"]) if data.get("schedule") else None,
            next_phase=_next_phase(data.get("schedule")),
        )
    except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise ValueError(f"not a subscription: {error!r}") from error


def effective(
    subscription: StripeSubscription, previous: Interval | None, period_end: datetime, now: datetime
) -> Interval:
    """Return when a subscription gives its plan, given what was known of it before.

    It ends where Stripe says that it ends or will end, so that the plan changes on time even if that event is late. A
    suspension begins when it was first seen: Stripe does not say since when.
    """
    start = subscription.start_date
    end: datetime | None
    if subscription.status in GIVING:
        planned = period_end if subscription.cancel_at_period_end else None
        end = min(
            (at for at in (subscription.ended_at, subscription.cancel_at, planned) if at is not None), default=None
        )
    elif subscription.status == "canceled":
        ended = subscription.ended_at or subscription.canceled_at or now
        end = ended if previous is None or previous.end is None else min(ended, previous.end)
    elif subscription.status in SUSPENDED:
        end = previous.end if previous is not None and previous.end is not None and previous.end <= now else now
    elif subscription.status in STILLBORN:
        end = start
    else:  # a status that is not known yet keeps what was
        end = start if previous is None else previous.end
    return Interval(start, end if end is None else max(start, end))


def _next_phase(schedule: object) -> Phase | None:
    """Return what a schedule will make of its subscription next; None if nothing, or if it came as an id."""
    present = schedule.get("current_phase") if isinstance(schedule, Mapping) else None
    if not isinstance(schedule, Mapping) or present is None:
        return None
    coming = [phase for phase in schedule["phases"] if phase["start_date"] >= present["end_date"]]
    if not coming:
        return None
    phase = min(coming, key=lambda one: one["start_date"])
    prices = {reading.id_of(item["price"]): _quantity(item.get("quantity") or 1) for item in phase["items"]}
    return Phase(reading.instant(phase["start_date"]), prices)


def _item(item: Mapping[str, Any], subscription: Mapping[str, Any]) -> Item:
    def period(bound: str) -> datetime:
        return reading.instant(item.get(bound) or subscription[bound])

    price = item.get("price") or item["plan"]
    quantity = item.get("quantity")
    return Item(
        item_id=reading.text(item["id"]),
        price_id=reading.id_of(price),
        # Metered items have none; and none is not zero.
        quantity=1 if quantity is None else _quantity(quantity),
        period_start=period("current_period_start"),
        period_end=period("current_period_end"),
    )


def _quantity(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= QUANTITY_MAX:
        raise TypeError("not a quantity")
    return value
