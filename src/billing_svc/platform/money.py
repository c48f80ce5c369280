"""Currencies and their minor units, and what Stripe can charge in them."""

import decimal
from decimal import Decimal

# Products of the largest amounts and quantities have fewer digits than this; a result that is not exact raises.
EXACT = decimal.Context(
    prec=80, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
)
# ISO 4217 exponents as Stripe applies them. Left out on purpose: ISK and UGX (whole amounts written as hundredths) and
# the three-decimal currencies (the last digit must be 0), whose rules no product needs yet.
EXPONENTS = {
    **dict.fromkeys(
        (
            *("aud", "brl", "cad", "chf", "czk", "dkk", "eur", "gbp", "hkd", "huf", "ils", "inr", "mxn"),
            *("nok", "nzd", "pln", "ron", "sek", "sgd", "thb", "usd", "zar"),
        ),
        2,
    ),
    **dict.fromkeys(("clp", "jpy", "krw", "vnd"), 0),
}
# Stripe's bound for `unit_amount`, and for what an invoice or an item of it comes to: eight digits.
MINOR_UNITS_MAX = 99_999_999
# Stripe's bound for `unit_amount_decimal`, counted in minor units.
UNIT_PRICE_PLACES_MAX = 12


# The decimal places with which Stripe writes amounts, of all currencies that do not have two.
_WRITTEN_PLACES = {
    **dict.fromkeys(
        (
            *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
            *("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"),
        ),
        0,
    ),
    **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 3),
}


def written_places(currency: str) -> int:
    """Return the decimal places with which Stripe writes amounts of any currency, also of one that we do not sell in.

    ISK and UGX have no minor unit, but are written with two places.
    """
    return _WRITTEN_PLACES.get(currency, 2)


def in_minor_units(amount: Decimal, currency: str) -> Decimal:
    """Return an amount of major units in minor units, exact, so possibly with a fraction."""
    return EXACT.scaleb(amount, EXPONENTS[currency])


def whole_minor_units(amount: Decimal, currency: str) -> int:
    """Return an amount of major units in minor units; raises ValueError if that is not a whole number."""
    minor = in_minor_units(amount, currency)
    if minor != minor.to_integral_value():
        raise ValueError(f"{amount} {currency} is not a whole number of minor units")
    return int(minor)


def major_units(minor_units: int, currency: str) -> Decimal:
    """Return minor units in major units, with the currency's decimal places: 150 cents are 1.50."""
    return EXACT.scaleb(Decimal(minor_units), -written_places(currency))


def in_major_units(minor_units: Decimal, currency: str) -> Decimal:
    """Return minor units, which may have a fraction, in major units, exact."""
    return EXACT.scaleb(minor_units, -EXPONENTS[currency])


def decimal_places(number: Decimal) -> int:
    """Return how many decimal places a number needs."""
    exponent = number.normalize(EXACT).as_tuple().exponent
    return max(0, -int(exponent))
