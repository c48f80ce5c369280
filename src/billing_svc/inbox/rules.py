"""Which object an event concerns, and when to try again. Pure: no I/O, `now` is an argument."""

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

from billing_svc.platform import backoff, errors

ID_LENGTH_MAX = 255
TYPE_LENGTH_MAX = 255
# The same maximum as the gateway's.
BODY_BYTES_MAX = 256 * 1024

# Seconds since 1970, in the year 2242; a greater number is not an event's time.
CREATED_MAX = 2**33

RETRY_FIRST = timedelta(seconds=1)
RETRY_MOST = timedelta(minutes=5)


class ObjectKind(enum.Enum):
    """The kind of object that an event updates; each kind has its handler."""

    SUBSCRIPTION = enum.auto()
    # A checkout page that did not lead to a subscription.
    CHECKOUT = enum.auto()
    INVOICE = enum.auto()
    CUSTOMER = enum.auto()
    METER_ERROR = enum.auto()
    # A payment that was refunded or disputed.
    PAYMENT = enum.auto()


_CREDIT_NOTE = "credit_note."
_FAMILIES: Mapping[str, ObjectKind] = {
    "customer.subscription.": ObjectKind.SUBSCRIPTION,
    "invoice.": ObjectKind.INVOICE,
    # Its invoice shows what was credited.
    _CREDIT_NOTE: ObjectKind.INVOICE,
    "refund.": ObjectKind.PAYMENT,
    "charge.dispute.": ObjectKind.PAYMENT,
}
_TYPES: Mapping[str, ObjectKind] = {
    "checkout.session.completed": ObjectKind.CHECKOUT,
    "checkout.session.expired": ObjectKind.CHECKOUT,
    "customer.updated": ObjectKind.CUSTOMER,
    "customer.deleted": ObjectKind.CUSTOMER,
    "charge.refunded": ObjectKind.PAYMENT,
    "charge.refund.updated": ObjectKind.PAYMENT,
    "v1.billing.meter.error_report_triggered": ObjectKind.METER_ERROR,
    "v1.billing.meter.no_meter_found": ObjectKind.METER_ERROR,
}
# Types of these families that have no object to fetch.
_WITHOUT_EFFECT: Mapping[str, str] = {"invoice.upcoming": "the invoice that it announces does not exist yet"}


@dataclass(frozen=True, slots=True)
class CheckoutEvent:
    """The checkout of this service that an event's session belongs to."""

    account_id: str
    checkout_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """A webhook event, typed; `object` is its payload's object, empty for a thin event."""

    event_id: str
    type: str
    object: Mapping[str, Any]
    livemode: bool
    api_version: str | None
    created_at: datetime
    body: bytes

    @property
    def kind(self) -> ObjectKind | None:
        """Return the kind of object that the event updates; None if events of this type have no effect here."""
        if self.type in _WITHOUT_EFFECT:
            return None
        family = next((kind for prefix, kind in _FAMILIES.items() if self.type.startswith(prefix)), None)
        kind = family or _TYPES.get(self.type)
        # A paid checkout page is closed in the transaction that stores its subscription.
        return ObjectKind.SUBSCRIPTION if kind is ObjectKind.CHECKOUT and self.subscription_id else kind

    @property
    def is_about_checkout(self) -> bool:
        """Say whether the event's object is a checkout session."""
        return _TYPES.get(self.type) is ObjectKind.CHECKOUT

    @property
    def tells_of_deletion(self) -> bool:
        """Say whether the event reports its object's deletion; its payload then has the object's final state."""
        return self.type.endswith(".deleted")

    @property
    def subscription_id(self) -> str | None:
        """Return the subscription that the event concerns; None if there is none."""
        if self.type.startswith("customer.subscription."):
            return self._own_id
        return _id(self.object.get("subscription")) if self.is_about_checkout else None

    @property
    def customer_id(self) -> str | None:
        """Return the customer that the event's object is or belongs to. An object never changes its customer."""
        return self._own_id if _TYPES.get(self.type) is ObjectKind.CUSTOMER else _id(self.object.get("customer"))

    @property
    def checkout(self) -> "CheckoutEvent | None":
        """Return our checkout that the event's session belongs to, from its metadata; None if it is not ours."""
        metadata = self.object.get("metadata")
        if not isinstance(metadata, Mapping):
            return None
        account_id, checkout_id = metadata.get("account_id"), metadata.get("checkout_id")
        if not _is_text(account_id, ID_LENGTH_MAX) or not _is_text(checkout_id, ID_LENGTH_MAX):
            return None
        return CheckoutEvent(account_id, checkout_id)

    @property
    def object_id(self) -> str:
        """Return the id of the Stripe object that the event updates; the event's own id if it names no object.

        A single worker at a time works on an object.
        """
        if self.type.startswith(_CREDIT_NOTE):
            return _id(self.object.get("invoice")) or self.event_id
        return self.subscription_id or self.payment_intent or self._own_id or self.event_id

    @property
    def payment_intent(self) -> str | None:
        """Return the payment intent whose refund or dispute the event tells of; None for other events."""
        return _id(self.object.get("payment_intent")) if self.kind is ObjectKind.PAYMENT else None

    @property
    def _own_id(self) -> str | None:
        return _id(self.object.get("id"))

    def ignored_because(self, *, livemode: bool) -> str | None:
        """Return why the event is stored but not applied; None if it is to be applied.

        `livemode` is the mode of our own Stripe key.
        """
        if self.livemode != livemode:
            return f"livemode is {self.livemode}, our key's is {livemode}"
        if self.kind is None:
            return _WITHOUT_EFFECT.get(self.type, "this type changes nothing here")
        return None


def parse(body: bytes, now: datetime) -> Event:
    """Parse a verified body. Raises InvalidRequest if it is not an event; unknown types and fields are accepted."""
    if len(body) > BODY_BYTES_MAX:
        raise _refused(f"is {len(body)} bytes long; at most {BODY_BYTES_MAX} are allowed")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise _refused("is not JSON") from None
    if not isinstance(data, dict):
        raise _refused("is not a JSON object")
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
    return backoff.retry_at(attempts, now, RETRY_FIRST, RETRY_MOST)


def _id(value: object) -> str | None:
    """Return the id from an id or an expanded object; None if the value is neither."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return value if _is_text(value, ID_LENGTH_MAX) else None


def _is_text(value: object, length_max: int) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= length_max and value.isprintable()


def _created(value: object, now: datetime) -> datetime:
    """Return when Stripe created the event, from seconds since 1970, or ISO text in thin events; else `now`."""
    if isinstance(value, int) and 0 <= value < CREATED_MAX:
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            return now
        if at.tzinfo is not None and 0 <= at.timestamp() < CREATED_MAX:
            return at.astimezone(UTC)
    return now


def _refused(problem: str) -> errors.InvalidRequest:
    return errors.InvalidRequest([errors.FieldViolation("payload", problem)])
