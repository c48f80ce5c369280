"""Reads values from Stripe's objects, of any API version: the door through which Stripe's data enters. Pure.

A value is read correctly, or refused with `StripeObjectUnreadable`, whose text names the object and the field. Nothing
else may come out of here: no other exception, and no text or number that a column cannot hold.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from billing_svc.platform import errors

# A Stripe object as plain data.
Data: TypeAlias = Mapping[str, Any]

# Seconds since 1970, in the year 2242. Later times are no dates of a subscription or an invoice, and arithmetic with
# them would leave the calendar.
INSTANT_MAX = 2**33
# Stripe's ids, words and addresses are shorter.
TEXT_LENGTH_MAX = 5000
# The largest int64, as in the columns.
WHOLE_MAX = 2**63 - 1
# How much of a wrong number an error quotes.
_SHOWN_MAX = 20


class StripeFields:
    """The fields of a Stripe object or of a part of it. `about` names the object, `path` is the part's place in it."""

    __slots__ = ("_data", "about", "path")

    def __init__(self, data: object, about: str, path: str = "") -> None:
        self.about, self.path = about, path
        if not isinstance(data, Mapping):
            raise self._unreadable(path, f"is {shown(data)}, not an object")
        self._data = data

    @classmethod
    def of(cls, data: object, kind: str) -> "StripeFields":
        """Return the fields of a whole object; `kind` is its name in errors."""
        return cls(data, named(data, kind))

    def get(self, name: str) -> object:
        """Return a field as it is; None if it is missing."""
        return self._data.get(name)

    def first(self, *names: str) -> str:
        """Return the first of these names, the present one and older ones, whose field is not null; else the first."""
        return next((name for name in names if self._data.get(name) is not None), names[0])

    def text(self, name: str) -> str:
        """Return an id, a word or an address."""
        value = optional_text(self.get(name))
        if value is None:
            raise self.refused(name, "a text of printable characters")
        return value

    def id(self, name: str) -> str:
        """Return the id of an object that may be expanded."""
        found = optional_id(self.get(name))
        if found is None:
            raise self.refused(name, "an id or an object with an id")
        return found

    def instant(self, name: str) -> datetime:
        """Return the instant of a Unix time."""
        found = readable_instant(self.get(name))
        if found is None:
            raise self.refused(name, "a time")
        return found

    def optional_instant(self, name: str) -> datetime | None:
        """Return the instant of a Unix time; None if the field is null."""
        return None if self.get(name) is None else self.instant(name)

    def whole(self, name: str, least: int = -WHOLE_MAX, most: int = WHOLE_MAX, otherwise: int | None = None) -> int:
        """Return a whole number between two bounds; `otherwise` if the field is null."""
        value = self.get(name)
        if value is None and otherwise is not None:
            return otherwise
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.refused(name, f"a whole number from {least} to {most}")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean, also written as 0 or 1; False if the field is null."""
        value = self.get(name)
        if value is None:
            return False
        if value not in (True, False) or isinstance(value, float):
            raise self.refused(name, "true or false")
        return bool(value)

    def part(self, name: str) -> "StripeFields":
        """Return the fields of a part."""
        return StripeFields(self.get(name), self.about, self._path(name))

    def optional_part(self, name: str) -> "StripeFields | None":
        """Return the fields of a part; None if the field is null."""
        return None if self.get(name) is None else self.part(name)

    def each(self, name: str) -> list["StripeFields"]:
        """Return the parts of a list."""
        value = self.get(name)
        if not isinstance(value, list):
            raise self.refused(name, "a list")
        return [StripeFields(one, self.about, f"{self._path(name)}[{number}]") for number, one in enumerate(value)]

    def refused(self, name: str, wanted: str) -> errors.StripeObjectUnreadable:
        """Return the error of a field that is not what was wanted."""
        value = self.get(name)
        is_what = "is missing" if name not in self._data else f"is {shown(value)}, not {wanted}"
        return self._unreadable(self._path(name), is_what)

    def _path(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _unreadable(self, path: str, problem: str) -> errors.StripeObjectUnreadable:
        place = f": {path}" if path else ""
        return errors.StripeObjectUnreadable(f"{self.about}{place} {problem}", {"object": self.about, "field": path})


def named(data: object, kind: str) -> str:
    """Return the name of an object in errors: its kind and its id."""
    own_id = optional_text(data.get("id")) if isinstance(data, Mapping) else None
    return f"{kind} {own_id}" if own_id else f"{kind} without an id"


def shown(value: object) -> str:
    """Return what an error says of a value; texts are not quoted, because they may be personal data."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        # The number of digits is bounded first: to write a much longer integer raises ValueError.
        is_long = isinstance(value, int) and abs(value) >= 10**_SHOWN_MAX
        return "a number of too many digits" if is_long else str(value)[:_SHOWN_MAX]
    if isinstance(value, str):
        return "a text" if value.isprintable() else "a text with a character that cannot be stored"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else "of another type"


def optional_text(value: object) -> str | None:
    """Return an id, a word or an address; None if the value is not such a text."""
    return value if isinstance(value, str) and 0 < len(value) <= TEXT_LENGTH_MAX and value.isprintable() else None


def optional_id(value: object) -> str | None:
    """Return the id of an object that may be expanded; None if the value has no id."""
    return optional_text(value.get("id") if isinstance(value, Mapping) else value)


def id_of(value: object, about: str) -> str:
    """Return the id of an object that may be expanded; `about` names its place in the error."""
    found = optional_id(value)
    if found is None:
        message = f"{about} is {shown(value)}, not an id or an object with an id"
        raise errors.StripeObjectUnreadable(message, {"object": about, "field": ""})
    return found


def readable_instant(value: object) -> datetime | None:
    """Return the instant of a Unix time; None if the value is null or not a time."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < INSTANT_MAX:
        return None
    return datetime.fromtimestamp(value, UTC)


def nested(data: object, *path: str) -> object:
    """Return the value at a path; None if a part of the path is missing."""
    value = data
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def price_of_line(line: Mapping[str, Any]) -> str | None:
    """Return the price that an invoice line charges, in the present API version's form; None if it has none."""
    price = nested(line, "pricing", "price_details", "price")
    return price if isinstance(price, str) else None
