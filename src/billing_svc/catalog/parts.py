"""The parts of a catalog, typed: meters, limits, prices, plans. Frozen: a sold version never changes.

The constructors refuse parts that contradict themselves or that Stripe cannot charge.
Amounts are in major units of the catalog's currency, quantities in the meter's unit.
"""

import decimal
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from billing_svc.catalog import notation
from billing_svc.catalog.notation import Amount, Cost, Included, LongText, Name, Problem, Text
from billing_svc.platform import money

Beyond = Literal["deny", "grace", "charge", "allow"]
MeterKind = Literal["consumable", "gauge"]
Interval = Literal["month", "year"]
RatePeriod = Literal["second", "minute", "hour"]
QuotaPeriod = Literal["billing", "calendar_month"]

# Bounds far above the needs of any product; they limit a catalog's size, and how many objects it needs at Stripe.
METERS_MAX = 50
OPERATIONS_MAX = 200
# Stripe lists prices by at most 10 lookup keys in a call.
PRICES_MAX = 10
# A Stripe subscription has at most 20 items, one of them the plan's base price.
CHARGED_METERS_MAX = 19
TRIAL_DAYS_MAX = 730

_WINDOWS = {"second": timedelta(seconds=1), "minute": timedelta(minutes=1), "hour": timedelta(hours=1)}


class Part(BaseModel):
    """A part of a catalog: frozen, strict, without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )


class Meter(Part):
    """A kind of usage that is counted."""

    unit: Text
    """The unit's name in the singular: run, token, GB."""
    kind: MeterKind
    """consumable: adds up over a period. gauge: a level that no period resets; a period is charged for its peak."""
    display_name: Text | None = None
    """The name that customers read; default: the meter's key."""
    operations: Mapping[Name, Cost] = Field(default={}, max_length=OPERATIONS_MAX)
    """Named calls and how many units each costs. An operation's name belongs to one meter only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "gauge" and self.operations:
            notation.refuse("Meter", [Problem(("operations",), "a gauge has a level, so operations cannot add to it")])
        return self


class Limit(Part):
    """A meter's included quantity in a plan, and what happens beyond it."""

    included: Included
    """Units in a quota period (of a gauge: its level), or unlimited."""
    beyond: Beyond | None = None
    """deny: refused. grace: allowed for the catalog's grace period. charge: billed. allow: allowed, with alerts."""
    unit_price: Amount | None = None
    """With charge: the price of `per` units, in quotes."""
    per: Annotated[int, Field(ge=1, le=10**9)] = 1
    """How many units `unit_price` buys. Only a notation: each unit is charged at unit_price / per."""
    per_seat: bool = False
    """Whether `included` is multiplied by the subscription's seats."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        notation.refuse("Limit", [*self._quantity_problems(), *self._price_problems()])
        return self

    def _quantity_problems(self) -> Iterator[Problem]:
        if self.included == "unlimited":
            if self.beyond is not None:
                yield Problem(("beyond",), "unlimited has no beyond")
            if self.per_seat:
                yield Problem(("per_seat",), "unlimited does not scale with the seats")
        elif self.beyond is None:
            yield Problem(("beyond",), "missing: deny, grace, charge or allow")
        elif self.per_seat and self.included > notation.SCALED_INCLUDED_MAX:
            yield Problem(("included",), f"must be <= {notation.SCALED_INCLUDED_MAX} for each seat")

    def _price_problems(self) -> Iterator[Problem]:
        if self.unit_price is None:
            if self.beyond == "charge":
                yield Problem(("unit_price",), "missing: charge needs a price")
            if self.per != 1:
                yield Problem(("per",), "needs a unit_price")
        elif self.beyond != "charge":
            yield Problem(("unit_price",), "only beyond: charge has a price")
        elif self.unit_price == 0:
            yield Problem(("unit_price",), "must be > 0; for free usage, write beyond: allow")
        else:
            try:
                money.EXACT.divide(self.unit_price, Decimal(self.per))
            except decimal.Inexact:
                yield Problem(
                    ("per",), f"{self.unit_price} / {self.per} has infinitely many digits: no exact unit price"
                )

    def included_for(self, quantity: int) -> int | None:
        """Return the included units of a subscription with `quantity` seats; None if unlimited."""
        if self.included == "unlimited":
            return None
        return self.included * quantity if self.per_seat else self.included

    @functools.cached_property
    def unit_price_exact(self) -> Decimal:
        """The exact price of a unit; 0 if nothing is charged."""
        return Decimal(0) if self.unit_price is None else money.EXACT.divide(self.unit_price, Decimal(self.per))

    @functools.cached_property
    def without_overage(self) -> "Limit":
        """The limit while nothing beyond it can be charged: the same included quantity, as a hard limit."""
        return self if self.beyond != "charge" else Limit(included=self.included, beyond="deny", per_seat=self.per_seat)


class RateLimit(Part):
    """How many checks are admitted in a window, which begins with its first check."""

    requests: Annotated[int, Field(ge=1, le=notation.RATE_REQUESTS_MAX)]
    per: RatePeriod

    @property
    def window(self) -> timedelta:
        """How long a window lasts."""
        return _WINDOWS[self.per]


class Price(Part):
    """A plan's price, independent of usage."""

    amount: Amount
    """Major units: 20 or "19.99"."""
    interval: Interval
    per_seat: bool = False
    """Whether the amount is for each seat; then a checkout takes a quantity."""


class PayAsYouGo(Part):
    """Limits and a rate limit that replace the plan's while an account has pay-as-you-go switched on."""

    name: Text
    limits: Mapping[Name, Limit] = Field(min_length=1, max_length=METERS_MAX)
    """These limits replace the plan's limits of the same meters; the plan's other limits stay."""
    rate_limit: RateLimit | None = None
    """Default: the plan's rate limit."""
    require_payment_method: bool = False
    """Whether switching on needs a payment method on file."""
    overage_cap: Amount | None = None
    """The most that the overlay may charge in a quota period, in major units; usage beyond it is denied."""


@dataclass(frozen=True, slots=True)
class MeteredPrice:
    """A price for reported overage: a Stripe price with its own Stripe meter."""

    meter: str
    limit: Limit
    pay_as_you_go: bool
    # Also the event name of its Stripe meter.
    lookup_key: str


class Plan(Part):
    """A named offer."""

    name: Text
    """The name that customers read."""
    description: LongText = ""
    prices: Mapping[Name, Price] = Field(default={}, max_length=PRICES_MAX)
    """Alternative prices of the plan; a checkout that names no price uses the first."""
    limits: Mapping[Name, Limit] = Field(default={}, max_length=METERS_MAX)
    """A meter without a limit here is not part of the plan."""
    rate_limit: RateLimit | None = None
    pay_as_you_go: PayAsYouGo | None = None
    trial_days: Annotated[int, Field(ge=0, le=TRIAL_DAYS_MAX)] = 0
    quota_period: QuotaPeriod = "billing"
    """billing: months from the subscription's anchor. calendar_month: from the first of each month."""
    sold: bool = True
    """Whether the plan can be bought now. false: accounts that have the plan keep it."""

    _catalog: str = PrivateAttr("")
    _key: str = PrivateAttr("")

    @model_validator(mode="after")
    def _check(self) -> Self:
        notation.refuse("Plan", list(self._problems()))
        return self

    def _problems(self) -> Iterator[Problem]:
        per_month = self.quota_period == "billing" and all(price.interval == "month" for price in self.prices.values())
        why_not = "a yearly price" if self.quota_period == "billing" else "quota_period: calendar_month"
        sold_by_seat = bool(self.prices) and all(price.per_seat for price in self.prices.values())
        for path, limit in self._all_limits():
            if limit.beyond == "charge" and not per_month:
                yield Problem((*path, "beyond"), f"charge does not go with {why_not}: Stripe bills usage monthly")
            if limit.per_seat and not sold_by_seat:
                yield Problem((*path, "per_seat"), "needs prices, all of them per_seat: true")
        if self.trial_days and not self.prices:
            yield Problem(("trial_days",), "needs a price: only a plan that is bought can have a trial")
        if self.pay_as_you_go is not None:
            yield from self._overlay_problems(self.pay_as_you_go)
        if len(self.metered_prices) > CHARGED_METERS_MAX:
            yield Problem(("limits",), f"at most {CHARGED_METERS_MAX} meters can be charged, including pay_as_you_go")

    def _overlay_problems(self, overlay: PayAsYouGo) -> Iterator[Problem]:
        if not any(limit.beyond == "charge" for limit in overlay.limits.values()):
            yield Problem(("pay_as_you_go", "limits"), "needs a limit with beyond: charge")
        if overlay.overage_cap == 0:
            yield Problem(("pay_as_you_go", "overage_cap"), "must be > 0; to charge nothing, leave pay_as_you_go out")
        for meter, limit in overlay.limits.items():
            # A counter has a single billable total, which is reported to a single Stripe meter.
            if limit.beyond == "charge" and meter in self.limits and self.limits[meter].beyond == "charge":
                message = "the plan itself charges this meter already"
                yield Problem(("pay_as_you_go", "limits", meter, "beyond"), message)

    def _all_limits(self) -> Iterator[tuple[tuple[str, ...], Limit]]:
        for meter, limit in self.limits.items():
            yield ("limits", meter), limit
        if self.pay_as_you_go is not None:
            for meter, limit in self.pay_as_you_go.limits.items():
                yield ("pay_as_you_go", "limits", meter), limit

    @functools.cached_property
    def key(self) -> str:
        """The plan's key in the catalog."""
        return self._key

    @property
    def per_seat(self) -> bool:
        """Whether the plan is sold by the seat; then a checkout takes a quantity."""
        return any(price.per_seat for price in self.prices.values())

    def limit(self, meter: str, *, pay_as_you_go: bool) -> Limit | None:
        """Return the limit in force for a meter; None if the meter is not part of the plan."""
        overlay = self.pay_as_you_go.limits if pay_as_you_go and self.pay_as_you_go is not None else {}
        return overlay.get(meter) or self.limits.get(meter)

    def rate_limit_for(self, *, pay_as_you_go: bool) -> RateLimit | None:
        """Return the rate limit in force; None if there is none."""
        overlay = self.pay_as_you_go.rate_limit if pay_as_you_go and self.pay_as_you_go is not None else None
        return overlay or self.rate_limit

    def base_lookup_key(self, price: str) -> str:
        """Return the lookup key of a price of the plan."""
        return f"{self._catalog}_{self._key}_{price}"

    def metered_lookup_key(self, meter: str, *, pay_as_you_go: bool) -> str:
        """Return the lookup key of a charged meter's price, which is also its Stripe meter's event name."""
        return f"{self._catalog}_{self._key}_{'payg_' if pay_as_you_go else ''}{meter}"

    def charged(self, *, pay_as_you_go: bool) -> tuple[MeteredPrice, ...]:
        """Return the charged meters of the plan itself, or of its pay-as-you-go overlay."""
        overlay = self.pay_as_you_go.limits if self.pay_as_you_go is not None else {}
        return tuple(
            MeteredPrice(meter, limit, pay_as_you_go, self.metered_lookup_key(meter, pay_as_you_go=pay_as_you_go))
            for meter, limit in (overlay if pay_as_you_go else self.limits).items()
            if limit.beyond == "charge"
        )

    @property
    def metered_prices(self) -> tuple[MeteredPrice, ...]:
        """All metered prices of a subscription to the plan, including the overlay's."""
        return self.charged(pay_as_you_go=False) + self.charged(pay_as_you_go=True)
