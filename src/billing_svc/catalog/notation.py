"""How names, quantities, amounts and durations are written in a catalog, and their bounds."""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from billing_svc.platform import money

# Exact as a double, for callers in JavaScript, and so far below the maximum of int64 that no period's sum can overflow.
QUANTITY_MAX = 10**15
# The largest number of seats. With SCALED_INCLUDED_MAX, the included quantity never exceeds QUANTITY_MAX.
SEATS_MAX = 10**6
SCALED_INCLUDED_MAX = QUANTITY_MAX // SEATS_MAX
# Each check updates its window's counter; a higher limit would never be reached.
RATE_REQUESTS_MAX = 10**6
# A grace period longer than any quota period would be the same as `allow`.
GRACE_PERIOD_MAX = timedelta(days=366)
# How many digits on each side of the point are accepted; the catalog checks what Stripe can charge by currency.
AMOUNT_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,20})?$"
DURATION_PATTERN = r"^[1-9][0-9]{0,9}[smhd]$"
NAME_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"

_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_QUOTED = 'must be a whole number or, for an amount of money, text in quotes such as "0.008"'


class Problem(NamedTuple):
    """A broken rule: the path of its place in the catalog, and a message."""

    path: tuple[str | int, ...]
    message: str


def refuse(title: str, problems: list[Problem]) -> None:
    """Raise a ValidationError that has all problems; do nothing if there are none."""
    if problems:
        raise ValidationError.from_exception_data(
            title,
            [
                InitErrorDetails(type=PydanticCustomError("catalog", message), loc=path, input=None)
                for path, message in problems
            ],
        )


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("catalog", message)


def _text(value: str) -> str:
    if not value.isprintable():
        raise _refused("must be one line without control characters")
    return value


def _included(value: object) -> object:
    if value == "unlimited":
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refused("must be a whole number, or unlimited")
    if value < 0:
        raise _refused("must be >= 0")
    if value > QUANTITY_MAX:
        raise _refused(f"must be <= {QUANTITY_MAX}")
    return value


def _amount(value: object) -> object:
    if isinstance(value, Decimal):  # from code; a file or a stored version cannot contain a Decimal
        value = format(value, "f")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _refused(_QUOTED)
    text = str(value)
    if text.startswith("-"):
        raise _refused("must be >= 0")
    if not re.fullmatch(AMOUNT_PATTERN, text, re.ASCII):
        raise _refused('must be an amount such as 20 or "0.008", without a sign, an exponent or a currency')
    return Decimal(text)


def write_amount(amount: Decimal) -> str:
    """Return an amount as text, without trailing zeros, so that equal amounts have equal texts."""
    return format(money.EXACT.create_decimal(amount).normalize(money.EXACT), "f")


def _duration(value: object) -> object:
    if isinstance(value, timedelta):  # from code
        value = write_duration(value)
    if not isinstance(value, str) or not re.fullmatch(DURATION_PATTERN, value, re.ASCII):
        raise _refused("must be a duration such as 90s, 30m, 24h or 7d")
    seconds = int(value[:-1]) * _SECONDS[value[-1]]
    if seconds > GRACE_PERIOD_MAX.total_seconds():
        raise _refused(f"must be at most {write_duration(GRACE_PERIOD_MAX)}")
    return timedelta(seconds=seconds)


def write_duration(duration: timedelta) -> str:
    """Return a duration as text in the largest unit that divides it, so that equal durations have equal texts."""
    seconds = duration // timedelta(seconds=1)
    unit, length = next((unit, length) for unit, length in _SECONDS.items() if seconds % length == 0)
    return f"{seconds // length}{unit}"


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
# Stripe shows names on invoices and in checkout, and cuts longer names.
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), AfterValidator(_text)]
LongText = Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000), AfterValidator(_text)]
Cost = Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
Included = Annotated[
    int | Literal["unlimited"],
    BeforeValidator(_included),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": QUANTITY_MAX}, {"const": "unlimited"}]},
    ),
]
Amount = Annotated[
    Decimal,
    BeforeValidator(_amount),
    PlainSerializer(write_amount, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": AMOUNT_PATTERN}, {"type": "integer", "minimum": 0}]}),
]
Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(write_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
