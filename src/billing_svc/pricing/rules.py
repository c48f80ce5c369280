"""The lines of a bill. Pure; amounts are exact Decimals in major units until a line is rounded, once."""

import decimal
from dataclasses import dataclass
from decimal import Decimal

from billing_svc.catalog import model
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import terms
from billing_svc.platform import money

# Digits enough for the largest quantity at the longest price.
_ROUNDING = decimal.Context(prec=80, rounding=decimal.ROUND_HALF_UP)
# What runs into a limit of these kinds is denied, at once or after the grace.
_DENYING = frozenset({"deny", "grace"})


@dataclass(frozen=True, slots=True)
class Quantity:
    """So many units of a meter, of a gauge its peak; `counter`: as an account's counter has them, on its own terms."""

    units: int
    counter: quota_rules.Counter | None = None


@dataclass(frozen=True, slots=True)
class BaseLine:
    """What the plan itself costs in one interval of its price."""

    plan: model.Plan
    price: model.Price
    price_name: str
    seats: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class MeterLine:
    """What the use of one meter costs; `included` None: unlimited. `charging` is the limit that names the price."""

    meter: str
    definition: model.Meter
    quantity: int
    included: int | None
    in_plan: bool
    billable: int
    charging: model.Limit | None
    amount: Decimal
    over_limit: bool


@dataclass(frozen=True, slots=True)
class Bill:
    """Lines on some terms; `base` is None on a plan without a price. `of_account`: with a real account's usage."""

    under: terms.Terms
    catalog: model.Catalog
    base: BaseLine | None
    lines: tuple[MeterLine, ...]
    of_account: bool

    @property
    def total(self) -> Decimal:
        """Return the sum of the rounded lines."""
        amounts = [line.amount for line in self.lines]
        return sum(amounts, start=Decimal(0) if self.base is None else self.base.amount)


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Return the amount of an invoice line: rounded to minor units, half up, after price and quantity are multiplied.

    That is what Stripe does ("Decimal amounts for pricing", section "Rounding"): 30 at 0.05 cents are 1.5, charged as
    2 cents, and lines are rounded before they are summed up.
    """
    return amount.quantize(Decimal(1).scaleb(-money.EXPONENTS[currency]), context=_ROUNDING)


def charging_limit(under: terms.Terms, meter: str, billable: int) -> model.Limit | None:
    """Return the limit whose price the billable units of a meter have; None if there is none.

    Units that were charged stay charged when pay-as-you-go is switched off within the period, so what is billable
    already finds its price also in the overlay that is no longer in force.
    """
    for pay_as_you_go in (under.pay_as_you_go, not under.pay_as_you_go) if billable else (under.pay_as_you_go,):
        limit = under.plan.limit(meter, pay_as_you_go=pay_as_you_go)
        if limit is not None and limit.beyond == "charge":
            return limit
    return None


def base_line(plan: model.Plan, price_name: str, seats: int, currency: str) -> BaseLine:
    """Return the line of a plan's price."""
    price = plan.prices[price_name]
    billed = seats if price.per_seat else 1
    return BaseLine(plan, price, price_name, billed, rounded(price.amount * billed, currency))


def meter_line(
    meter: str,
    definition: model.Meter,
    under: terms.Terms,
    allowance: terms.Allowance,
    quantity: Quantity,
    currency: str,
) -> MeterLine:
    """Return the line of a meter: what a counter holds as billable, or what the quantity would come to."""
    limit, included, counter = allowance.limit, allowance.included, quantity.counter
    beyond = 0 if included is None else max(0, quantity.units - included)
    if counter is not None:
        billable = counter.billable
        # What was charged takes up no room; of a gauge the peak counts.
        passed = 0 if included is None else max(0, quantity.units - billable - included)
    else:
        billable = beyond if allowance.charges else 0
        if allowance.charged_units_max is not None:
            billable = min(billable, allowance.charged_units_max)
        passed = beyond - billable
    charging = charging_limit(under, meter, billable)
    return MeterLine(
        meter=meter,
        definition=definition,
        quantity=quantity.units,
        included=included,
        in_plan=limit is not None,
        billable=billable,
        charging=charging,
        amount=rounded(Decimal(0) if charging is None else charging.price_of(billable), currency),
        over_limit=passed > 0
        and (limit is None or limit.beyond in _DENYING or allowance.charged_units_max is not None),
    )
