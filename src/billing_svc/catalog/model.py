"""What a catalog says, typed. Frozen: a sold version never changes.

A limit, a plan and a catalog refuse what Stripe could not charge or what contradicts itself, wherever they are made.
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

from billing_svc.catalog import consistency, notation, references
from billing_svc.catalog.notation import Amount, Cost, Duration, Included, LongText, Name, Problem, Text
from billing_svc.platform import money

Beyond = Literal["deny", "grace", "charge", "allow"]
MeterKind = Literal["consumable", "gauge"]
Interval = Literal["month", "year"]
RatePeriod = Literal["second", "minute", "hour"]
QuotaPeriod = Literal["billing", "calendar_month"]
FreePeriod = Literal["calendar_month", "signup_anniversary"]
Percent = Annotated[int, Field(ge=1, le=1000)]

NO_PLAN = "none"
# Bounds that no product comes near; they keep a catalog, and what is made of it at Stripe, in hand.
METERS_MAX = 50
OPERATIONS_MAX = 200
PLANS_MAX = 50
# Stripe lists prices by at most 10 lookup keys at a time.
PRICES_MAX = 10
# A Stripe subscription holds 20 items, one of them the plan's own price.
CHARGED_METERS_MAX = 19
ALERTS_MAX = 10
TRIAL_DAYS_MAX = 730

_WINDOWS = {"second": timedelta(seconds=1), "minute": timedelta(minutes=1), "hour": timedelta(hours=1)}


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )


class Meter(_Part):
    """What is counted."""

    unit: Text
    """One of what is counted, in the singular: run, token, GB."""
    kind: MeterKind
    """consumable: adds up over a period. gauge: a level that no period resets; a period is charged for its peak."""
    display_name: Text | None = None
    """What customers read; left out, the meter's name."""
    operations: Mapping[Name, Cost] = Field(default={}, max_length=OPERATIONS_MAX)
    """Named calls and what each costs in this meter. A name belongs to one meter only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "gauge" and self.operations:
            notation.refuse("Meter", [Problem(("operations",), "a gauge is a level, so no operation adds to it")])
        return self


class Limit(_Part):
    """What a plan includes of a meter, and what happens beyond."""

    included: Included
    """Units in a quota period (of a gauge: its level), or unlimited."""
    beyond: Beyond | None = None
    """deny: hard. grace: allowed for the catalog's grace period. charge: billed. allow: only alerts."""
    unit_price: Amount | None = None
    """With charge: the price of `per` units, in quotes."""
    per: Annotated[int, Field(ge=1, le=10**9)] = 1
    """How many units `unit_price` buys; notation only, a single unit is charged as well."""
    per_seat: bool = False
    """Whether `included` is for each seat of the subscription."""

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
            yield Problem(("unit_price",), "must be > 0; what costs nothing is beyond: allow")
        else:
            try:
                money.EXACT.divide(self.unit_price, Decimal(self.per))
            except decimal.Inexact:
                yield Problem(("per",), f"{self.unit_price} / {self.per} has no end, so one unit has no exact price")

    def included_for(self, quantity: int) -> int | None:
        """Return the included units of a subscription with `quantity` seats; None if unlimited."""
        if self.included == "unlimited":
            return None
        return self.included * quantity if self.per_seat else self.included

    @functools.cached_property
    def unit_price_exact(self) -> Decimal:
        """The exact price of one unit; 0 where nothing is charged."""
        return Decimal(0) if self.unit_price is None else money.EXACT.divide(self.unit_price, Decimal(self.per))

    def price_of(self, units: int) -> Decimal:
        """Return what `units` beyond the included quantity cost, exact and unrounded; 0 where nothing is charged."""
        return money.EXACT.multiply(self.unit_price_exact, Decimal(units))


class RateLimit(_Part):
    """How many checks are admitted in a window, which opens with its first one."""

    requests: Annotated[int, Field(ge=1, le=notation.RATE_REQUESTS_MAX)]
    per: RatePeriod

    @property
    def window(self) -> timedelta:
        """How long a window lasts."""
        return _WINDOWS[self.per]


class Price(_Part):
    """What a plan costs, whatever is used."""

    amount: Amount
    """Major units: 20 or "19.99"."""
    interval: Interval
    per_seat: bool = False
    """Whether the amount is for each seat, so that checkout takes a quantity."""


class PayAsYouGo(_Part):
    """What changes while an account has pay-as-you-go switched on: these limits and this rate, nothing else."""

    name: Text
    limits: Mapping[Name, Limit] = Field(min_length=1, max_length=METERS_MAX)
    """These limits take the place of the plan's; the others stay."""
    rate_limit: RateLimit | None = None
    """Left out: the plan's."""
    require_payment_method: bool = False
    """Whether switching on needs a payment method on file."""
    overage_cap: Amount | None = None
    """The most that the overlay may charge in a quota period, in major units; denied beyond."""


@dataclass(frozen=True, slots=True)
class MeteredPrice:
    """A price that multiplies reported overage: one Stripe price on a Stripe meter of its own."""

    meter: str
    limit: Limit
    pay_as_you_go: bool
    # Also the event name of its Stripe meter.
    lookup_key: str


class Plan(_Part):
    """A named offer."""

    name: Text
    """What customers read."""
    description: LongText = ""
    prices: Mapping[Name, Price] = Field(default={}, max_length=PRICES_MAX)
    """Each buys the same plan; a checkout that names none takes the first."""
    limits: Mapping[Name, Limit] = Field(default={}, max_length=METERS_MAX)
    """A meter that is not here is not in the plan."""
    rate_limit: RateLimit | None = None
    pay_as_you_go: PayAsYouGo | None = None
    trial_days: Annotated[int, Field(ge=0, le=TRIAL_DAYS_MAX)] = 0
    quota_period: QuotaPeriod = "billing"
    """billing: months from the subscription's anchor. calendar_month: from the first of each month."""
    sold: bool = True
    """Whether it can be bought now. false keeps it for those who have it."""

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
            yield Problem(("trial_days",), "needs a price: only what is bought can be tried")
        if self.pay_as_you_go is not None:
            yield from self._overlay_problems(self.pay_as_you_go)
        if len(self.metered_prices) > CHARGED_METERS_MAX:
            yield Problem(("limits",), f"at most {CHARGED_METERS_MAX} meters can be charged, pay_as_you_go included")

    def _overlay_problems(self, overlay: PayAsYouGo) -> Iterator[Problem]:
        if not any(limit.beyond == "charge" for limit in overlay.limits.values()):
            yield Problem(("pay_as_you_go", "limits"), "needs a limit with beyond: charge")
        if overlay.overage_cap == 0:
            yield Problem(("pay_as_you_go", "overage_cap"), "must be > 0; to charge nothing, leave pay_as_you_go out")
        for meter, limit in overlay.limits.items():
            # A counter has one billable total, which goes to one Stripe meter.
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
        """The plan's name in the catalog."""
        return self._key

    @property
    def per_seat(self) -> bool:
        """Whether it is sold by the seat, so that checkout takes a quantity."""
        return any(price.per_seat for price in self.prices.values())

    def limit(self, meter: str, *, pay_as_you_go: bool) -> Limit | None:
        """Return the limit in force for a meter; None if the plan does not have it."""
        overlay = self.pay_as_you_go.limits if pay_as_you_go and self.pay_as_you_go is not None else {}
        return overlay.get(meter) or self.limits.get(meter)

    def rate_limit_for(self, *, pay_as_you_go: bool) -> RateLimit | None:
        """Return the rate limit in force; None if there is none."""
        overlay = self.pay_as_you_go.rate_limit if pay_as_you_go and self.pay_as_you_go is not None else None
        return overlay or self.rate_limit

    def base_lookup_key(self, price: str) -> str:
        """Return the lookup key of one of the plan's prices."""
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
        """All that a subscription to it carries beside its base price, the overlay's among them."""
        return self.charged(pay_as_you_go=False) + self.charged(pay_as_you_go=True)


class Catalog(_Part):
    """Everything that is counted and sold."""

    name: Name = Field(alias="catalog")
    """The catalog's name; Stripe's lookup keys begin with it, so it never changes."""
    currency: str = Field(json_schema_extra={"enum": [*sorted(money.EXPONENTS)]})
    """ISO 4217, in lower case."""
    default_plan: Name
    """The plan of an account without a subscription; none: a plan with nothing in it."""
    free_period: FreePeriod = "calendar_month"
    """The quota period of an account without a subscription."""
    alert_percents: tuple[Percent, ...] = Field(default=(80, 100, 120), max_length=ALERTS_MAX)
    """At which percentages of the included quantity an alert is raised, rising."""
    grace_period: Duration = timedelta(hours=24)
    """How long beyond: grace allows after the first crossing: 90s, 30m, 24h, 7d."""
    meters: Mapping[Name, Meter] = Field(min_length=1, max_length=METERS_MAX)
    plans: Mapping[Name, Plan] = Field(min_length=1, max_length=PLANS_MAX)
    """In the order in which a pricing page shows them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, plan in self.plans.items():
            plan._catalog, plan._key = self.name, key  # noqa: SLF001 - a plan learns its key from the catalog alone
        notation.refuse("Catalog", list(self._problems()))
        return self

    def _problems(self) -> Iterator[Problem]:
        yield from references.problems(self.model_dump(by_alias=True))
        yield from consistency.problems(self)

    @functools.cached_property
    def limits_rates(self) -> bool:
        """Whether any plan has a rate limit."""
        return any(plan.rate_limit_for(pay_as_you_go=True) is not None for plan in self.plans.values())

    @functools.cached_property
    def default(self) -> Plan:
        """The plan of an account without a subscription; one with nothing in it if there is none."""
        return self.plans.get(self.default_plan) or self._nothing

    @functools.cached_property
    def _nothing(self) -> Plan:
        plan = Plan(name="No plan", sold=False)
        plan._catalog, plan._key = self.name, NO_PLAN  # noqa: SLF001 - as above
        return plan

    def plan(self, key: str) -> Plan:
        """Return a plan; raises KeyError if there is none of that name."""
        return self.default if key == self.default_plan else self.plans[key]

    def meter_of_operation(self, operation: str) -> tuple[str, int]:
        """Return the meter that an operation counts in and what one costs; raises KeyError if unknown."""
        return self._operations[operation]

    @functools.cached_property
    def _operations(self) -> Mapping[str, tuple[str, int]]:
        return {
            operation: (key, cost) for key, meter in self.meters.items() for operation, cost in meter.operations.items()
        }

    def minor_units(self, price: Price) -> int:
        """Return the amount of a price as Stripe's `unit_amount`."""
        return money.whole_minor_units(price.amount, self.currency)
