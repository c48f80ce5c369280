"""The price of overage and of a plan, and how an invoice line is rounded. Pure: catalog values in, exact amounts out.

Amounts are Decimals in major units or integers in minor units; each line is rounded once, half up, as Stripe does.
"""

import decimal
from dataclasses import dataclass
from decimal import Decimal

from billing_svc.catalog import model, parts
from billing_svc.platform import money


@dataclass(frozen=True, slots=True)
class BaseLine:
    """The plan's own cost in an interval of its price."""

    plan: parts.Plan
    price: parts.Price
    price_name: str
    seats: int
    amount: Decimal


def overage(limit: parts.Limit | None, units: int) -> Decimal:
    """Return the price of units beyond the included quantity, in major units, exact; 0 if the limit charges nothing."""
    return Decimal(0) if limit is None else money.EXACT.multiply(limit.unit_price_exact, Decimal(units))


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Return the amount of an invoice line: rounded to minor units, half up, after price and quantity are multiplied.

    Stripe rounds the same way ("Decimal amounts for pricing", section "Rounding"): 30 units at 0.05 cents are 1.5
    cents, charged as 2 cents, and lines are rounded before they are summed up.
    """
    return money.major_units(_half_up(money.in_minor_units(amount, currency)), currency)


def charging_limit(plan: parts.Plan, meter: str, billable: int, *, pay_as_you_go: bool) -> parts.Limit | None:
    """Return the limit of a plan whose price applies to a meter's billable units; None if there is no such limit.

    Billable units stay billable when pay-as-you-go is switched off within the period. So if `billable` is not 0, the
    price is also looked up in the overlay that is no longer in force.
    """
    for switched_on in (pay_as_you_go, not pay_as_you_go) if billable else (pay_as_you_go,):
        limit = plan.limit(meter, pay_as_you_go=switched_on)
        if limit is not None and limit.beyond == "charge":
            return limit
    return None


def base_line(plan: parts.Plan, price_name: str, seats: int, currency: str) -> BaseLine:
    """Return the line of a plan's price."""
    price = plan.prices[price_name]
    billed = seats if price.per_seat else 1
    return BaseLine(plan, price, price_name, billed, rounded(price.amount * billed, currency))


def quantity_problem(plan: parts.Plan, price_name: str, quantity: int, currency: str) -> str:
    """Return why a quantity cannot be sold at a price; empty if it can."""
    price = plan.prices.get(price_name)
    if quantity > 1 and not (plan.per_seat if price is None else price.per_seat):
        return f"is {quantity}; plan {plan.key} is not sold by the seat at this price"
    if price is None:
        return ""  # a price that was made by hand; Stripe checks its amount
    amount = base_line(plan, price_name, quantity, currency).amount
    if money.in_minor_units(amount, currency) > money.MINOR_UNITS_MAX:
        most = money.major_units(money.MINOR_UNITS_MAX, currency)
        return f"is {quantity}; that comes to {amount:f} {currency}, and Stripe takes at most {most:f}"
    return ""


def metered_price(catalog: model.Catalog, plan: str, meter: str) -> parts.MeteredPrice | None:
    """Return a plan's metered price of a meter, from the plan or its overlay (never both); None if it has none."""
    try:
        prices = catalog.plan(plan).metered_prices
    except KeyError:
        return None
    return next((one for one in prices if one.meter == meter), None)


def unit_price_in_minor_units(catalog: model.Catalog, price: parts.MeteredPrice) -> Decimal:
    """Return the exact price of a unit in minor units, as it is stored at Stripe."""
    return money.in_minor_units(price.limit.unit_price_exact, catalog.currency)


def amount(unit_price: Decimal, units: int) -> int:
    """Return the price of units in minor units, rounded once, half up, as Stripe rounds an invoice line."""
    return _half_up(money.EXACT.multiply(unit_price, Decimal(units)))


def late_amount(unit_price: Decimal, on_the_meter: int, on_items: int, charged_by_items: int, units: int) -> int:
    """Return the amount of an invoice item for `units`, in minor units, such that the total is rounded only once.

    The item, the meter's line and the earlier items add up to the price of all units together, rounded once. The item
    contains the rounding differences of the parts; for a few cheap units its amount can be 0.
    """
    whole = amount(unit_price, on_the_meter + on_items + units)
    return whole - amount(unit_price, on_the_meter) - charged_by_items


def _half_up(minor_units: Decimal) -> int:
    return int(minor_units.to_integral_value(rounding=decimal.ROUND_HALF_UP))
