"""Values from Stripe's objects, of any API version. Pure; a value that cannot be parsed raises Python's own errors."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def text(value: object) -> str:
    """Return an id, a word or an address."""
    found = optional_text(value)
    if found is None:
        raise TypeError("not an id, a word or an address")
    return found


def optional_text(value: object) -> str | None:
    """Return an id, a word or an address; None if the value is not such a text."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def id_of(value: object) -> str:
    """Return the id of an object that may be expanded."""
    return text(value["id"] if isinstance(value, Mapping) else value)


def optional_id(value: object) -> str | None:
    """Return the id of an object that may be expanded; None if the value has no id."""
    return optional_text(value.get("id") if isinstance(value, Mapping) else value)


def instant(seconds: object) -> datetime:
    """Return the instant of a Unix time. A time outside the calendar raises ValueError, OverflowError or OSError."""
    if not isinstance(seconds, int):
        raise TypeError("not a time")
    return datetime.fromtimestamp(seconds, UTC)


def optional_instant(seconds: object) -> datetime | None:
    """Return the instant of a Unix time; None if the value is None."""
    return None if seconds is None else instant(seconds)


def nested(data: Mapping[str, Any], *path: str) -> object:
    """Return the value at a path; None if a part of the path is missing."""
    value: object = data
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def price_of_line(line: Mapping[str, Any]) -> str | None:
    """Return the price that an invoice line charges, in the present API version's form; None if it has none."""
    price = nested(line, "pricing", "price_details", "price")
    return price if isinstance(price, str) else None
