"""What a whole catalog must keep so that Stripe can charge it: currency, default plan, keys."""

import decimal
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING

from billing_svc.catalog.notation import Problem
from billing_svc.platform import money

if TYPE_CHECKING:
    from billing_svc.catalog import model

# Stripe's bound for the event name of a meter; a lookup key may be twice as long.
STRIPE_NAME_LENGTH_MAX = 100


def problems(catalog: "model.Catalog") -> Iterator[Problem]:
    """Yield what the parts cannot see for themselves."""
    yield from _alert_problems(catalog.alert_percents)
    yield from _offer_problems(catalog)
    yield from _key_problems(catalog)
    if catalog.currency not in money.EXPONENTS:
        yield Problem(("currency",), f"must be one of {', '.join(sorted(money.EXPONENTS))}")
        return
    for key, plan in catalog.plans.items():
        yield from _money_problems(("plans", key), plan, catalog.currency)


def _alert_problems(percents: tuple[int, ...]) -> Iterator[Problem]:
    if list(percents) != sorted(set(percents)):
        yield Problem(("alert_percents",), "must rise, each once")


def _offer_problems(catalog: "model.Catalog") -> Iterator[Problem]:
    for key, plan in catalog.plans.items():
        path = ("plans", key)
        if key != catalog.default_plan:
            if plan.sold and not plan.prices:
                yield Problem(path, "needs prices to be bought (0 is one), or sold: false")
            continue
        # It is held without a subscription, so nothing of it can be paid and no anchor counts its months.
        if plan.prices:
            yield Problem((*path, "prices"), "the default plan is held without paying; it has no prices")
        if plan.quota_period != "billing":
            yield Problem((*path, "quota_period"), "the default plan's period is the catalog's free_period")
        for charged in plan.charged(pay_as_you_go=False):
            message = "charge on the default plan belongs into its pay_as_you_go: nobody has subscribed to it"
            yield Problem((*path, "limits", charged.meter, "beyond"), message)


def _key_problems(catalog: "model.Catalog") -> Iterator[Problem]:
    """Yield where two things of Stripe's would share a name, as plan a_b with c does with plan a and b_c."""
    taken: dict[str, str] = {}
    for key, plan in catalog.plans.items():
        places = [(("plans", key, "prices", price), plan.base_lookup_key(price)) for price in plan.prices]
        for metered in plan.metered_prices:
            holder = ("pay_as_you_go", "limits") if metered.pay_as_you_go else ("limits",)
            places.append((("plans", key, *holder, metered.meter), metered.lookup_key))
        for path, name in places:
            if len(name) > STRIPE_NAME_LENGTH_MAX:
                yield Problem(path, f"{name} is longer than the {STRIPE_NAME_LENGTH_MAX} characters that Stripe takes")
            if name in taken:
                yield Problem(path, f"is {name} at Stripe, and so is {taken[name]}; rename one")
            taken.setdefault(name, ".".join(path))


def _money_problems(path: tuple[str, ...], plan: "model.Plan", currency: str) -> Iterator[Problem]:
    for key, price in plan.prices.items():
        yield from _amount_problems((*path, "prices", key, "amount"), price.amount, currency)
    overlay = plan.pay_as_you_go
    if overlay is not None and overlay.overage_cap is not None:
        yield from _amount_problems((*path, "pay_as_you_go", "overage_cap"), overlay.overage_cap, currency)
    for metered in plan.metered_prices:
        holder = ("pay_as_you_go", "limits") if metered.pay_as_you_go else ("limits",)
        unit = money.in_minor_units(metered.limit.unit_price_exact, currency)
        if money.decimal_places(unit) > money.UNIT_PRICE_PLACES_MAX:
            message = f"one unit costs {unit:f} minor units: Stripe takes {money.UNIT_PRICE_PLACES_MAX} decimal places"
            yield Problem((*path, *holder, metered.meter, "unit_price"), message)
        if unit > money.MINOR_UNITS_MAX:
            yield Problem((*path, *holder, metered.meter, "unit_price"), _too_much(currency))


def _amount_problems(path: tuple[str, ...], amount: Decimal, currency: str) -> Iterator[Problem]:
    minor = money.in_minor_units(amount, currency)
    if minor != minor.to_integral_value():
        yield Problem(path, f"{currency} has {money.EXPONENTS[currency]} decimal places")
    elif minor > money.MINOR_UNITS_MAX:
        yield Problem(path, _too_much(currency))


def _too_much(currency: str) -> str:
    largest = money.EXACT.scaleb(decimal.Decimal(money.MINOR_UNITS_MAX), -money.EXPONENTS[currency])
    return f"must be <= {largest}, the most that Stripe takes"
