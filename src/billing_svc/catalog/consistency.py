"""Rules about a whole catalog that Stripe's charging needs: currency, default plan, keys."""

import decimal
from collections.abc import Iterator, Mapping
from decimal import Decimal

from billing_svc.catalog import parts
from billing_svc.catalog.notation import Problem
from billing_svc.platform import money

# Stripe's maximum for the event name of a meter; a lookup key may be twice as long.
STRIPE_NAME_LENGTH_MAX = 100


def problems(
    plans: Mapping[str, parts.Plan], default_plan: str, currency: str, alert_percents: tuple[int, ...]
) -> Iterator[Problem]:
    """Yield the broken rules that involve more than one part of a catalog."""
    yield from _alert_problems(alert_percents)
    yield from _offer_problems(plans, default_plan)
    yield from _key_problems(plans)
    if currency not in money.EXPONENTS:
        yield Problem(("currency",), f"must be one of {', '.join(sorted(money.EXPONENTS))}")
        return
    for key, plan in plans.items():
        yield from _money_problems(("plans", key), plan, currency)


def _alert_problems(percents: tuple[int, ...]) -> Iterator[Problem]:
    if list(percents) != sorted(set(percents)):
        yield Problem(("alert_percents",), "must be in rising order, without duplicates")


def _offer_problems(plans: Mapping[str, parts.Plan], default_plan: str) -> Iterator[Problem]:
    for key, plan in plans.items():
        path = ("plans", key)
        if key != default_plan:
            if plan.sold and not plan.prices:
                yield Problem(path, "needs prices (an amount of 0 is allowed), or sold: false")
            continue
        # Accounts have it without a subscription, so nothing can be charged, and there is no anchor for its months.
        if plan.prices:
            yield Problem((*path, "prices"), "the default plan needs no subscription, so it cannot have prices")
        if plan.quota_period != "billing":
            yield Problem((*path, "quota_period"), "the default plan's period is the catalog's free_period")
        for charged in plan.charged(pay_as_you_go=False):
            message = "charge needs a subscription, which the default plan has not: move it into pay_as_you_go"
            yield Problem((*path, "limits", charged.meter, "beyond"), message)


def _key_problems(plans: Mapping[str, parts.Plan]) -> Iterator[Problem]:
    """Yield the places where two names at Stripe would be equal, such as plan a_b with price c and plan a with b_c."""
    taken: dict[str, str] = {}
    for key, plan in plans.items():
        places = [(("plans", key, "prices", price), plan.base_lookup_key(price)) for price in plan.prices]
        for metered in plan.metered_prices:
            holder = ("pay_as_you_go", "limits") if metered.pay_as_you_go else ("limits",)
            places.append((("plans", key, *holder, metered.meter), metered.lookup_key))
        for path, name in places:
            if len(name) > STRIPE_NAME_LENGTH_MAX:
                yield Problem(path, f"{name} is longer than the {STRIPE_NAME_LENGTH_MAX} characters that Stripe takes")
            if name in taken:
                yield Problem(path, f"has the name {name} at Stripe, as {taken[name]} does; rename either")
            taken.setdefault(name, ".".join(path))


def _money_problems(path: tuple[str, ...], plan: parts.Plan, currency: str) -> Iterator[Problem]:
    for key, price in plan.prices.items():
        yield from _amount_problems((*path, "prices", key, "amount"), price.amount, currency)
    overlay = plan.pay_as_you_go
    if overlay is not None and overlay.overage_cap is not None:
        yield from _amount_problems((*path, "pay_as_you_go", "overage_cap"), overlay.overage_cap, currency)
    for metered in plan.metered_prices:
        holder = ("pay_as_you_go", "limits") if metered.pay_as_you_go else ("limits",)
        unit = money.in_minor_units(metered.limit.unit_price_exact, currency)
        if money.step(currency) > 1 and unit % money.step(currency):
            # Only with such a price is every number of units an amount that Stripe can charge without rounding.
            yield Problem((*path, *holder, metered.meter, "unit_price"), _not_whole_steps(currency))
        if money.decimal_places(unit) > money.UNIT_PRICE_PLACES_MAX:
            message = f"a unit costs {unit:f} minor units: Stripe takes {money.UNIT_PRICE_PLACES_MAX} decimal places"
            yield Problem((*path, *holder, metered.meter, "unit_price"), message)
        if unit > money.MINOR_UNITS_MAX:
            yield Problem((*path, *holder, metered.meter, "unit_price"), _too_much(currency))


def _amount_problems(path: tuple[str, ...], amount: Decimal, currency: str) -> Iterator[Problem]:
    minor = money.in_minor_units(amount, currency)
    if minor != minor.to_integral_value():
        yield Problem(path, f"{currency} has {money.EXPONENTS[currency]} decimal places")
    elif minor % money.step(currency):
        yield Problem(path, _not_whole_steps(currency))
    elif minor > money.MINOR_UNITS_MAX:
        yield Problem(path, _too_much(currency))


def _not_whole_steps(currency: str) -> str:
    smallest = money.major_units(money.step(currency), currency)
    return f"must be a multiple of {smallest}, the smallest amount of {currency} that Stripe charges"


def _too_much(currency: str) -> str:
    largest = money.EXACT.scaleb(decimal.Decimal(money.MINOR_UNITS_MAX), -money.EXPONENTS[currency])
    return f"must be <= {largest}, the most that Stripe takes"
