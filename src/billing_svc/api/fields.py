"""Checks and conversions of fields that many messages share.

A request is checked with a `Fields` object, which collects every violation, so that the answer names all of them.
"""

import base64
import functools
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlsplit

from google.protobuf import duration_pb2, timestamp_pb2

from billing.v1 import money_pb2
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.platform import errors, money

ACCOUNT_ID_LENGTH_MAX = 128
ID_LENGTH_MAX = 255
URL_LENGTH_MAX = 2048
EMAIL_LENGTH_MAX = 254
PAGE_TOKEN_LENGTH_MAX = 512
PROPERTIES_MAX = 50
PROPERTY_KEY_BYTES_MAX = 64
PROPERTY_VALUE_BYTES_MAX = 512
# Far above any team's size; multiplied by any price of a catalog it fits an int64 of minor units.
SEATS_MAX = 100_000

_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_NAME_LENGTH_MAX = 64
_EMAIL = re.compile(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]+")
# The range of Timestamp, 0001-01-01 to 9999-12-31, which is also the range of datetime.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799


def _is_printable(text: str) -> bool:
    # Takes a third of the time of a regular expression; it runs for each id of each call.
    return text.isascii() and text.isprintable() and " " not in text


@functools.lru_cache(maxsize=1024)
def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


class Fields:
    """Collects the violations of a request; `done` raises them all at once."""

    def __init__(self, prefix: str = "") -> None:
        """`prefix` is put before every field's name, as in `events[3].`."""
        self._prefix = prefix
        self._violations: list[errors.FieldViolation] = []

    def refuse(self, field: str, description: str) -> None:
        """Record that a field breaks a rule."""
        self._violations.append(errors.FieldViolation(self._prefix + field, description))

    def done(self) -> None:
        """Raise InvalidRequest if anything was refused."""
        if self._violations:
            raise errors.InvalidRequest(self._violations)

    def account_id(self, value: str) -> str:
        """Check the account's id: 1 to 128 printable ASCII characters without spaces."""
        return self.identifier("account_id", value, ACCOUNT_ID_LENGTH_MAX)

    def identifier(self, field: str, value: str, length_max: int = ID_LENGTH_MAX) -> str:
        """Check a required id that the caller chooses."""
        if not value:
            self.refuse(field, "is required")
        elif len(value) > length_max:
            self.refuse(field, f"is {len(value)} characters long; at most {length_max} are allowed")
        elif not _is_printable(value):
            self.refuse(field, "must be printable ASCII without spaces")
        return value

    def optional_identifier(self, field: str, value: str, length_max: int = ID_LENGTH_MAX) -> str:
        """Check an id that may be left out."""
        return self.identifier(field, value, length_max) if value else value

    def name(self, field: str, value: str) -> str:
        """Check a required name of the catalog."""
        if not value:
            self.refuse(field, "is required")
        # The length is checked first, because `_is_name` caches its argument.
        elif len(value) > _NAME_LENGTH_MAX or not _is_name(value):
            limit = f"1 to {_NAME_LENGTH_MAX} characters, a-z, 0-9 and _, beginning with a letter"
            self.refuse(field, f"must be {limit}")
        return value

    def meter_or_operation(self, meter: str, operation: str) -> None:
        """Check that exactly one of the two is given."""
        if meter and operation:
            self.refuse("operation", "give a meter or an operation, not both")
        elif operation:
            self.name("operation", operation)
        elif meter:
            self.name("meter", meter)
        else:
            self.refuse("meter", "is required, unless an operation is given")

    def quantity(self, field: str, value: int, least: int = 1) -> int:
        """Check a quantity."""
        if not least <= value <= quota_rules.UNITS_MAX:
            self.refuse(field, f"is {value}; must be {least} to {quota_rules.UNITS_MAX}")
        return value

    def seats(self, value: int) -> int:
        """Check the field `quantity`: the number of seats."""
        if not 1 <= value <= SEATS_MAX:
            self.refuse("quantity", f"is {value}; must be 1 to {SEATS_MAX}")
        return value

    def text(self, field: str, value: str, length_max: int) -> str:
        """Check an optional free text."""
        if len(value) > length_max:
            self.refuse(field, f"is {len(value)} characters long; at most {length_max} are allowed")
        elif "\0" in value:
            self.refuse(field, "must not contain NUL characters")
        return value

    def instant(self, field: str, value: timestamp_pb2.Timestamp) -> datetime:
        """Return a timestamp as UTC, truncated to microseconds."""
        if not (_SECONDS_MIN <= value.seconds <= _SECONDS_MAX and 0 <= value.nanos < 10**9):
            self.refuse(field, "is not a valid timestamp")
            return datetime.min.replace(tzinfo=UTC)
        return value.ToDatetime(tzinfo=UTC)

    def duration(self, field: str, value: duration_pb2.Duration) -> timedelta:
        """Return a duration, truncated to microseconds."""
        if not (abs(value.seconds) <= _SECONDS_MAX and abs(value.nanos) < 10**9):
            self.refuse(field, "is not a valid duration")
            return timedelta()
        return value.ToTimedelta()

    def properties(self, field: str, value: Mapping[str, str]) -> dict[str, str]:
        """Check an event's properties: at most 50, keys of at most 64 bytes, values of at most 512 bytes."""
        if not value:
            return {}
        if len(value) > PROPERTIES_MAX:
            self.refuse(field, f"has {len(value)} entries; at most {PROPERTIES_MAX} are allowed")
            return {}
        for key, text in value.items():
            if not key or len(key.encode()) > PROPERTY_KEY_BYTES_MAX:
                self.refuse(field, f"has a key of {len(key.encode())} bytes; 1 to {PROPERTY_KEY_BYTES_MAX} are allowed")
            elif len(text.encode()) > PROPERTY_VALUE_BYTES_MAX:
                self.refuse(f"{field}[{key!r}]", f"is longer than {PROPERTY_VALUE_BYTES_MAX} bytes")
            elif "\0" in key or "\0" in text:
                self.refuse(field, "must not contain NUL characters")
        return dict(value)

    def redirect_url(self, field: str, value: str, origins: Iterable[str]) -> str:
        """Check that a URL leads to one of the allowed origins (scheme://host[:port])."""
        if len(value) > URL_LENGTH_MAX:
            self.refuse(field, f"is longer than {URL_LENGTH_MAX} characters")
            return value
        if not _is_printable(value) or "\\" in value:
            self.refuse(field, "is not a URL")
            return value
        try:
            parts = urlsplit(value)
            fit = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
        except ValueError:
            fit = False
            parts = urlsplit("")
        if not fit:
            self.refuse(field, "must be an http or https URL without user information")
        elif f"{parts.scheme}://{parts.netloc}".lower() not in origins:
            self.refuse(field, "leads to an origin that is not allowed; see BILLING_REDIRECT_ORIGINS")
        return value

    def email(self, field: str, value: str) -> str:
        """Check the form of an e-mail address; Stripe may still refuse it."""
        if value and (len(value) > EMAIL_LENGTH_MAX or not _EMAIL.fullmatch(value)):
            self.refuse(field, "is not an e-mail address")
        return value


def to_page_token(after: str) -> str:
    """Return the opaque token of the page that follows an entry."""
    return base64.urlsafe_b64encode(after.encode()).decode().rstrip("=")


def from_page_token(token: str) -> str:
    """Return the entry that a page follows; "" for the first page. Raises InvalidPageToken."""
    if len(token) > PAGE_TOKEN_LENGTH_MAX:
        raise errors.InvalidPageToken(f"page_token: is longer than {PAGE_TOKEN_LENGTH_MAX} characters")
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise errors.InvalidPageToken("page_token: was not issued by this service") from None


def origin(url: str) -> str:
    """Return scheme://host[:port] of a URL, in lower case."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def to_proto_instant(value: datetime | None) -> timestamp_pb2.Timestamp | None:
    """Return an instant as a message for copying into another message; None leaves the field unset."""
    return None if value is None else to_proto_timestamp(value)


# Cached: every answer has the bounds of a period, and most accounts share them.
@functools.lru_cache(maxsize=4096)
def to_proto_timestamp(value: datetime) -> timestamp_pb2.Timestamp:
    """Return an instant as a message. The message is shared: copy it, never change it."""
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(value)
    return message


def to_proto_money(amount: Decimal, currency: str) -> money_pb2.Money:
    """Return an exact amount in major units, with at least the decimal places of its currency."""
    places = max(money.written_places(currency), money.decimal_places(amount))
    return money_pb2.Money(currency=currency, amount=f"{amount:.{places}f}")
