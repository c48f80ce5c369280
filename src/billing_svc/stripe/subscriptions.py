"""Parses Stripe's subscriptions of every API version; the meaning of their statuses. Pure."""

import decimal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from billing_svc.stripe import parse

# Statuses in which a subscription gives its plan; past_due is stored as a flag too.
GIVING = frozenset({"trialing", "active", "past_due"})
# Final statuses.
OVER = frozenset({"canceled", "incomplete_expired"})

# Far above any number of seats; its product with any limit fits an int64.
QUANTITY_MAX = 10**9


@dataclass(frozen=True, slots=True)
class ItemPrice:
    """The price of an item. Empty or None: Stripe's object does not say it, as that of an old version may not."""

    price_id: str
    product_id: str = ""
    is_metered: bool = False
    meter_id: str = ""
    # In minor units; None for a price with tiers.
    unit_amount: Decimal | None = None
    currency: str = ""
    interval: str = ""
    interval_count: int = 1


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a subscription: a price, and its present billing period. `created` is in Unix time, or 0."""

    item_id: str
    price: ItemPrice
    quantity: int
    period_start: datetime
    period_end: datetime
    created: int = 0

    @property
    def price_id(self) -> str:
        """The id of its price."""
        return self.price.price_id


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a subscription schedule: from `starts_at` on, the prices and the quantity of each."""

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
    # The phase after the schedule's present phase, if the schedule was expanded.
    next_phase: Phase | None = None

    @property
    def is_over(self) -> bool:
        """Say whether it has ended for good."""
        return self.status in OVER

    @property
    def will_end(self) -> bool:
        """Say whether its end is scheduled, by either of two fields."""
        return self.cancel_at_period_end or self.cancel_at is not None

    @property
    def earliest_period_end(self) -> datetime | None:
        """Return when `cancel_at_period_end` ends it: of items with several intervals, the earliest counts."""
        return min((item.period_end for item in self.items), default=None)


def from_stripe(data: Mapping[str, Any]) -> StripeSubscription:
    """Parse a subscription of any API version; raises ValueError if it is not a subscription.

    Billing periods are on the items since 2025-03-31, on the subscription before, and in a transition on both.
    """
    try:
        return StripeSubscription(
            subscription_id=parse.text(data["id"]),
            customer_id=parse.id_of(data["customer"]),
            status=parse.text(data["status"]),
            items=tuple(_item(item, data) for item in data["items"]["data"]),
            metadata={str(key): str(value) for key, value in (data.get("metadata") or {}).items()},
            anchor=parse.instant(data["billing_cycle_anchor"]),
            start_date=parse.instant(data.get("start_date") or data["created"]),
            trial_end=parse.optional_instant(data.get("trial_end")),
            cancel_at_period_end=bool(data.get("cancel_at_period_end")),
            cancel_at=parse.optional_instant(data.get("cancel_at")),
            canceled_at=parse.optional_instant(data.get("canceled_at")),
            ended_at=parse.optional_instant(data.get("ended_at")),
            schedule_id=parse.id_of(data["schedule"]) if data.get("schedule") else None,
            next_phase=_next_phase(data.get("schedule")),
        )
    except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise ValueError(f"not a subscription: {error!r}") from error


def _next_phase(schedule: object) -> Phase | None:
    """Return the next phase of a schedule; None if there is none, or if the schedule is only an id."""
    present = schedule.get("current_phase") if isinstance(schedule, Mapping) else None
    if not isinstance(schedule, Mapping) or present is None:
        return None
    coming = [phase for phase in schedule["phases"] if phase["start_date"] >= present["end_date"]]
    if not coming:
        return None
    phase = min(coming, key=lambda phase: phase["start_date"])
    prices = {parse.id_of(item["price"]): _quantity_of(item) for item in phase["items"]}
    return Phase(parse.instant(phase["start_date"]), prices)


def _item(item: Mapping[str, Any], subscription: Mapping[str, Any]) -> Item:
    def period(bound: str) -> datetime:
        return parse.instant(item.get(bound) or subscription[bound])

    created = item.get("created")
    return Item(
        item_id=parse.text(item["id"]),
        price=_price(item.get("price") or item["plan"]),
        quantity=_quantity_of(item),
        period_start=period("current_period_start"),
        period_end=period("current_period_end"),
        created=created if isinstance(created, int) else 0,
    )


def _price(price: object) -> ItemPrice:
    """Return a price, or an old `plan`, which has the fields of `recurring` itself."""
    if not isinstance(price, Mapping):
        return ItemPrice(parse.id_of(price))
    recurring = price.get("recurring") or price
    count = recurring.get("interval_count")
    amount = next((price[name] for name in _AMOUNTS if price.get(name) is not None), None)
    return ItemPrice(
        price_id=parse.id_of(price),
        product_id=parse.optional_id(price.get("product")) or "",
        is_metered=recurring.get("usage_type") == "metered",
        meter_id=parse.optional_id(recurring.get("meter")) or "",
        unit_amount=_decimal(amount) if price.get("billing_scheme", "per_unit") == "per_unit" else None,
        currency=parse.optional_text(price.get("currency")) or "",
        interval=parse.optional_text(recurring.get("interval")) or "",
        interval_count=count if isinstance(count, int) else 1,
    )


# Of a price, and of an old `plan`.
_AMOUNTS = ("unit_amount_decimal", "unit_amount", "amount_decimal", "amount")


def _decimal(value: object) -> Decimal | None:
    try:
        found = Decimal(str(value))
    except decimal.InvalidOperation:
        return None
    return found if found.is_finite() else None


def _quantity_of(item: Mapping[str, Any]) -> int:
    # Metered items have no quantity; null does not mean zero.
    quantity = item.get("quantity")
    return 1 if quantity is None else _quantity(quantity)


def _quantity(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= QUANTITY_MAX:
        raise TypeError("not a quantity")
    return value
