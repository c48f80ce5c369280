"""Currencies and their minor units, and what Stripe can charge in them."""

import decimal
from decimal import Decimal

# Products of the largest amounts and quantities have fewer digits than this; a result that is not exact raises.
EXACT = decimal.Context(
    prec=80, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
)
# The decimal places with which Stripe writes the amounts of each currency that it charges in.
EXPONENTS = {
    **dict.fromkeys(
        (
            *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
            *("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"),
        ),
        0,
    ),
    **dict.fromkeys(
        (
            *("aed", "afn", "all", "amd", "ang", "aoa", "ars", "aud", "awg", "azn", "bam", "bbd", "bdt", "bgn"),
            *("bmd", "bnd", "bob", "brl", "bsd", "bwp", "byn", "bzd", "cad", "cdf", "chf", "cny", "cop", "crc"),
            *("cve", "czk", "dkk", "dop", "dzd", "egp", "etb", "eur", "fjd", "fkp", "gbp", "gel", "gip", "gmd"),
            *("gtq", "gyd", "hkd", "hnl", "htg", "huf", "idr", "ils", "inr", "isk", "jmd", "kes", "kgs", "khr"),
            *("kyd", "kzt", "lak", "lbp", "lkr", "lrd", "lsl", "mad", "mdl", "mkd", "mmk", "mnt", "mop", "mur"),
            *("mvr", "mwk", "mxn", "myr", "mzn", "nad", "ngn", "nio", "nok", "npr", "nzd", "pab", "pen", "pgk"),
            *("php", "pkr", "pln", "qar", "ron", "rsd", "rub", "sar", "sbd", "scr", "sek", "sgd", "shp", "sle"),
            *("sos", "srd", "std", "svc", "szl", "thb", "tjs", "top", "try", "ttd", "twd", "tzs", "uah", "ugx"),
            *("usd", "uyu", "uzs", "wst", "xcd", "xcg", "yer", "zar", "zmw"),
        ),
        2,
    ),
    **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 3),
}
# Stripe charges only multiples of this many minor units: ISK and UGX have no minor unit but are written with two
# places, and the last of three places must be 0.
_STEPS = {"isk": 100, "ugx": 100, **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 10)}
# Stripe's bound for `unit_amount`, and for what an invoice or an item of it comes to: eight digits.
MINOR_UNITS_MAX = 99_999_999
# Stripe's bound for `unit_amount_decimal`, counted in minor units.
UNIT_PRICE_PLACES_MAX = 12


def written_places(currency: str) -> int:
    """Return the decimal places with which Stripe writes amounts; 2 for a currency that is newer than the table.

    So an amount in any currency can be shown; most currencies have two places.
    """
    return EXPONENTS.get(currency, 2)


def step(currency: str) -> int:
    """Return the number of minor units of which an amount must be a multiple, so that Stripe can charge it."""
    return _STEPS.get(currency, 1)


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
