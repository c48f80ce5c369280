"""Values out of Stripe's objects, of whichever API version. Pure; what cannot be read raises as Python does."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def text(value: object) -> str:
    """Return an id, a word or an address."""
    found = optional_text(value)
    if found is None:
        raise TypeError("not a word of Stripe's")
    return found


def optional_text(value: object) -> str | None:
    """Return an id, a word or an address; what is none counts as absent."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def id_of(value: object) -> str:
    """Return the id of an object that may have come expanded."""
    return text(value["id"] if isinstance(value, Mapping) else value)


def optional_id(value: object) -> str | None:
    """Return the id of an object that may have come expanded; what is none counts as absent."""
    return optional_text(value.get("id") if isinstance(value, Mapping) else value)


def instant(seconds: object) -> datetime:
    """Return the instant of a unix time. What no calendar holds raises ValueError, OverflowError or OSError."""
    if not isinstance(seconds, int):
        raise TypeError("not a time")
    return datetime.fromtimestamp(seconds, UTC)


def optional_instant(seconds: object) -> datetime | None:
    """Return the instant of a unix time; None if there is none."""
    return None if seconds is None else instant(seconds)


def nested(data: Mapping[str, Any], *path: str) -> object:
    """Return what lies at a path; None wherever it breaks off."""
    value: object = data
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def price_of_line(line: Mapping[str, Any]) -> str | None:
    """Return the price that an invoice's line charges, in the shape of the present API version; None without one."""
    price = nested(line, "pricing", "price_details", "price")
    return price if isinstance(price, str) else None
