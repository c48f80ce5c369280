"""Amounts in minor units. Each is rounded once, half up, away from zero."""

import decimal


def rounded(exact: decimal.Decimal) -> int:
    """Return an amount in whole minor units."""
    return int(exact.quantize(decimal.Decimal(1), rounding=decimal.ROUND_HALF_UP))


def of_units(unit_amount_decimal: str, units: int) -> int:
    """Return the cost of a number of units."""
    return rounded(decimal.Decimal(unit_amount_decimal) * units)


def share(exact: decimal.Decimal | int, part: int, whole: int) -> int:
    """Return the part of an amount for `part` of `whole` seconds."""
    return rounded(decimal.Decimal(exact) * part / whole)
