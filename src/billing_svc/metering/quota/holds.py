"""Reservations and their states. Pure: no I/O, `now` is an argument."""

import enum
from datetime import datetime, timedelta
from decimal import Decimal

from billing_svc.metering.quota import rules
from billing_svc.platform import values

TTL_DEFAULT = timedelta(minutes=15)
TTL_MIN = timedelta(seconds=1)
TTL_MAX = timedelta(hours=24)


class HoldState(enum.StrEnum):
    """The state of a reservation: HELD at first, then exactly one of the others."""

    HELD = "held"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class SettlementOutcome(enum.StrEnum):
    """How an event changed the reservation that it names; the usage is counted in every case."""

    SETTLED = "settled"
    ALREADY_CLOSED = "already_closed"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


@values.value
class Hold:
    """A request to hold units for a time, under the caller's request id."""

    request_id: str
    ttl: timedelta
    caller: str


@values.value
class SentHold:
    """The content of a request as sent. A repeated request id is the same request if its content is equal."""

    meter: str
    operation: str
    quantity: int


@values.value
class FirstAnswer:
    """The decision that made a hold, and its terms; the quantities are of that moment and include the hold."""

    period_end: datetime
    plan: str
    catalog_version: int
    quantity: int
    pay_as_you_go: bool
    past_due: bool
    # None: unlimited.
    included: int | None
    overridden: bool
    used: int
    reserved: int
    billable: int
    remaining: int
    reason: rules.Reason
    units_beyond: int
    projected_cost: Decimal
    grace_ends_at: datetime | None


@values.value
class Reservation:
    """Units held on the counter (meter, period_start) of an account."""

    account_id: str
    reservation_id: str
    request_id: str
    meter: str
    period_start: datetime
    units: int
    expires_at: datetime
    created_at: datetime
    sent: SentHold
    state: HoldState
    # None: made before first answers were stored.
    first: FirstAnswer | None

    @property
    def counter_key(self) -> tuple[str, str, datetime]:
        """Return the key of the counter that holds it."""
        return (self.account_id, self.meter, self.period_start)

    def state_at(self, now: datetime) -> HoldState:
        """Return its state: a hold whose time is over has expired, whether or not it was swept."""
        return HoldState.EXPIRED if self.state is HoldState.HELD and self.expires_at <= now else self.state
