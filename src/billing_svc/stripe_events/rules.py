"""What an event is about, and when to try again. Pure: no I/O, `now` is an argument."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

from billing_svc import errors

ID_LENGTH_MAX = 255
TYPE_LENGTH_MAX = 255
# The gateway's own bound.
BODY_BYTES_MAX = 256 * 1024

# Seconds since 1970, in the year 2242; what lies beyond is no time of an event.
CREATED_MAX = 2**33

RETRY_FIRST = timedelta(seconds=1)
RETRY_MOST = timedelta(minutes=5)

_SUBSCRIPTION = "customer.subscription."
_CHECKOUT = ("checkout.session.completed", "checkout.session.expired")


@dataclass(frozen=True, slots=True)
class Checkout:
    """Names a checkout page of ours."""

    account_id: str
    checkout_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """A webhook event, typed; `object` is what it carried."""

    event_id: str
    type: str
    object: Mapping[str, Any]
    livemode: bool
    api_version: str | None
    created_at: datetime
    body: bytes

    @property
    def is_handled(self) -> bool:
        """Say whether events of this type change anything here."""
        return self.type.startswith(_SUBSCRIPTION) or self.type in _CHECKOUT

    @property
    def subscription_id(self) -> str | None:
        """Return the subscription that the event is about, if it is about one."""
        value = self.object.get("id" if self.type.startswith(_SUBSCRIPTION) else "subscription")
        if isinstance(value, Mapping):
            value = value.get("id")
        return value if _is_text(value, ID_LENGTH_MAX) else None

    @property
    def checkout(self) -> "Checkout | None":
        """Return which checkout of ours the event's session belongs to, as its metadata say; None if it is not ours."""
        metadata = self.object.get("metadata")
        if not isinstance(metadata, Mapping):
            return None
        account_id, checkout_id = metadata.get("account_id"), metadata.get("checkout_id")
        if not _is_text(account_id, ID_LENGTH_MAX) or not _is_text(checkout_id, ID_LENGTH_MAX):
            return None
        return Checkout(account_id, checkout_id)

    @property
    def object_id(self) -> str:
        """Return the Stripe object that applying the event refreshes; one worker at a time works on it."""
        own = self.object.get("id")
        return self.subscription_id or (own if _is_text(own, ID_LENGTH_MAX) else self.event_id)


def parse(body: bytes, now: datetime) -> Event:
    """Read a verified body. Raises InvalidRequest if it is no event; unknown types and fields are welcome."""
    if len(body) > BODY_BYTES_MAX:
        raise _refused(f"is {len(body)} bytes long; at most {BODY_BYTES_MAX} are allowed")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise _refused("is no JSON") from None
    if not isinstance(data, dict):
        raise _refused("is no JSON object")
    event_id: object = data.get("id")
    type_: object = data.get("type")
    if not _is_text(event_id, ID_LENGTH_MAX):
        raise _refused("has no event id")
    if not _is_text(type_, TYPE_LENGTH_MAX):
        raise _refused("has no event type")
    carried = data.get("data")
    carried = carried.get("object") if isinstance(carried, dict) else None
    api_version = data.get("api_version")
    return Event(
        event_id=event_id,
        type=type_,
        object=carried if isinstance(carried, dict) else {},
        livemode=data.get("livemode") is True,
        api_version=api_version if _is_text(api_version, TYPE_LENGTH_MAX) else None,
        created_at=_created(data.get("created"), now),
        body=body,
    )


def retry_at(attempts: int, now: datetime) -> datetime:
    """Return when to try again after `attempts` failures: a second, doubling, at most five minutes."""
    return now + min(RETRY_FIRST * (1 << min(attempts, 16)), RETRY_MOST)


def _is_text(value: object, length_max: int) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= length_max and value.isprintable()


def _created(value: object, now: datetime) -> datetime:
    if not isinstance(value, int) or not 0 <= value < CREATED_MAX:
        return now
    return datetime.fromtimestamp(value, UTC)


def _refused(problem: str) -> errors.InvalidRequest:
    return errors.InvalidRequest([errors.FieldViolation("payload", problem)])
