"""Parses Stripe's subscriptions of every API version; the meaning of their statuses. Pure."""

import decimal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing_svc.stripe import parse

# Statuses in which a subscription gives its plan; past_due is stored as a flag too.
GIVING = frozenset({"trialing", "active", "past_due"})
# Final statuses.
OVER = frozenset({"canceled", "incomplete_expired"})
PAUSED = "paused"

# Far above any number of seats; its product with any limit fits an int64.
QUANTITY_MAX = 10**9
# The keys of the metadata that this service writes and reads; other keys belong to whoever wrote them.
METADATA_READ = ("account_id", "checkout_id", "plan", "price", "catalog_version", "purpose")


@dataclass(frozen=True, slots=True)
class ItemPrice:
    """The price of an item. Empty or None: Stripe's object lacks the field, as an object of an old version may."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of a subscription without its prices: whether it is alive, will end, or is paused."""

    subscription_id: str
    customer_id: str
    status: str
    cancel_at_period_end: bool
    cancel_at: datetime | None
    canceled_at: datetime | None
    ended_at: datetime | None
    schedule_id: str | None = None
    # What happens to invoices while their collection is paused (void, keep_as_draft, mark_uncollectible); None: it is
    # not paused. Stripe leaves the status as it is.
    collection_pause: str | None = None
    collection_resumes_at: datetime | None = None
    # Of the status `paused`: why, in Stripe's words, and since when.
    pause_reason: str | None = None
    pause_began_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Say whether it has ended for good."""
        return self.status in OVER

    @property
    def will_end(self) -> bool:
        """Say whether its end is scheduled, by either of two fields."""
        return self.cancel_at_period_end or self.cancel_at is not None

    @property
    def is_paused(self) -> bool:
        """Say whether it is paused itself, and not only the collection of its invoices."""
        return self.status == PAUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeSubscription(Standing):
    """A subscription as fetched, typed."""

    items: tuple[Item, ...]
    metadata: Mapping[str, str]
    anchor: datetime
    start_date: datetime
    trial_end: datetime | None
    # The phase after the schedule's present phase, if the schedule was expanded.
    next_phase: Phase | None = None

    @property
    def earliest_period_end(self) -> datetime | None:
        """Return when `cancel_at_period_end` ends it: of items with several intervals, the earliest counts."""
        return min((item.period_end for item in self.items), default=None)


def from_stripe(data: object) -> StripeSubscription:
    """Parse a subscription of any API version; raises StripeObjectUnreadable.

    Billing periods are on the items since 2025-03-31, on the subscription before, and in a transition on both.
    """
    fields = parse.StripeFields.of(data, "subscription")
    pause, details = fields.optional_part("pause_collection"), _pause_details(data)
    return StripeSubscription(
        subscription_id=fields.text("id"),
        customer_id=fields.id("customer"),
        status=fields.text("status"),
        items=tuple(_item(item, fields) for item in fields.part("items").each("data")),
        metadata=_metadata(fields),
        anchor=fields.instant("billing_cycle_anchor"),
        start_date=fields.instant(fields.first("start_date", "created")),
        trial_end=fields.optional_instant("trial_end"),
        cancel_at_period_end=fields.flag("cancel_at_period_end"),
        cancel_at=fields.optional_instant("cancel_at"),
        canceled_at=fields.optional_instant("canceled_at"),
        ended_at=fields.optional_instant("ended_at"),
        schedule_id=fields.id("schedule") if fields.get("schedule") else None,
        collection_pause=None if pause is None else pause.text("behavior"),
        collection_resumes_at=None if pause is None else pause.optional_instant("resumes_at"),
        pause_reason=details[0],
        pause_began_at=details[1],
        next_phase=_next_phase(fields.get("schedule")),
    )


def standing(data: object) -> Standing:
    """Parse only what needs no price, from an object whose other fields may not be readable.

    A field that cannot be read counts as missing; only id, customer and status are required. Raises
    StripeObjectUnreadable.
    """
    fields = parse.StripeFields.of(data, "subscription")
    pause = fields.get("pause_collection")
    reason, began_at = _pause_details(data)
    return Standing(
        subscription_id=fields.text("id"),
        customer_id=fields.id("customer"),
        status=fields.text("status"),
        cancel_at_period_end=fields.get("cancel_at_period_end") in (True, 1),
        cancel_at=parse.readable_instant(fields.get("cancel_at")),
        canceled_at=parse.readable_instant(fields.get("canceled_at")),
        ended_at=parse.readable_instant(fields.get("ended_at")),
        schedule_id=parse.optional_id(fields.get("schedule")),
        # A pause whose behavior cannot be read is a pause all the same.
        collection_pause=None if pause is None else parse.optional_text(parse.nested(pause, "behavior")) or "unknown",
        collection_resumes_at=parse.readable_instant(parse.nested(pause, "resumes_at")),
        pause_reason=reason,
        pause_began_at=began_at,
    )


def _pause_details(data: object) -> tuple[str | None, datetime | None]:
    """Return why and since when a subscription is paused. It is only shown, so what cannot be read is left out."""
    paused = parse.nested(data, "status_details", "paused")
    reason = parse.optional_text(parse.nested(paused, "subscription", "type"))
    return reason, parse.readable_instant(parse.nested(paused, "transitioned_at"))


def _metadata(fields: parse.StripeFields) -> Mapping[str, str]:
    metadata = fields.optional_part("metadata")
    if metadata is None:
        return {}
    return {key: metadata.text(key) for key in METADATA_READ if metadata.get(key) not in (None, "")}


def _next_phase(schedule: object) -> Phase | None:
    """Return the next phase of a schedule; None if there is none, or if the schedule is only an id."""
    if not isinstance(schedule, Mapping) or schedule.get("current_phase") is None:
        return None
    fields = parse.StripeFields.of(schedule, "subscription schedule")
    ends_at = fields.part("current_phase").instant("end_date")
    coming = [phase for phase in fields.each("phases") if phase.instant("start_date") >= ends_at]
    if not coming:
        return None
    phase = min(coming, key=lambda phase: phase.instant("start_date"))
    prices = {item.id("price"): _quantity_of(item) for item in phase.each("items")}
    return Phase(phase.instant("start_date"), prices)


def _item(item: parse.StripeFields, subscription: parse.StripeFields) -> Item:
    def period(bound: str) -> datetime:
        # If neither has it, the error names the item's field, where it should be.
        holder = subscription if item.get(bound) is None and subscription.get(bound) is not None else item
        return holder.instant(bound)

    created = item.get("created")
    return Item(
        item_id=item.text("id"),
        price=_price(item, item.first("price", "plan")),
        quantity=_quantity_of(item),
        period_start=period("current_period_start"),
        period_end=period("current_period_end"),
        created=created if isinstance(created, int) else 0,
    )


def _price(item: parse.StripeFields, name: str) -> ItemPrice:
    """Return a price, or an old `plan`, which has the fields of `recurring` itself."""
    price_id, price = item.id(name), item.get(name)
    if not isinstance(price, Mapping):
        return ItemPrice(price_id)
    recurring = price.get("recurring") if isinstance(price.get("recurring"), Mapping) else price
    count = parse.nested(recurring, "interval_count")
    amount = next((price[name] for name in _AMOUNTS if price.get(name) is not None), None)
    return ItemPrice(
        price_id=price_id,
        product_id=parse.optional_id(price.get("product")) or "",
        is_metered=parse.nested(recurring, "usage_type") == "metered",
        meter_id=parse.optional_id(parse.nested(recurring, "meter")) or "",
        unit_amount=_decimal(amount) if price.get("billing_scheme", "per_unit") == "per_unit" else None,
        currency=parse.optional_text(price.get("currency")) or "",
        interval=parse.optional_text(parse.nested(recurring, "interval")) or "",
        interval_count=count if isinstance(count, int) and 1 <= count <= _INTERVAL_COUNT_MAX else 1,
    )


# Of a price, and of an old `plan`.
_AMOUNTS = ("unit_amount_decimal", "unit_amount", "amount_decimal", "amount")
# Stripe's longest interval is three years, in days.
_INTERVAL_COUNT_MAX = 1_096
# Above Stripe's amounts, which have eight digits of minor units and twelve decimal places.
_UNIT_AMOUNT_MAX = Decimal(10) ** 12


def _decimal(value: object) -> Decimal | None:
    """Return the amount of a price; None if it cannot be read: it is only shown."""
    try:
        found = Decimal(str(value))
    except decimal.InvalidOperation:
        return None
    return found if found.is_finite() and abs(found) < _UNIT_AMOUNT_MAX else None


def _quantity_of(item: parse.StripeFields) -> int:
    # Metered items have no quantity; null does not mean zero.
    return item.whole("quantity", 0, QUANTITY_MAX, 1)
