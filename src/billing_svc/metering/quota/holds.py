"""What a reservation is, and what has become of it. Pure: no I/O, `now` is an argument."""

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

TTL_DEFAULT = timedelta(minutes=15)
TTL_MIN = timedelta(seconds=1)
TTL_MAX = timedelta(hours=24)


class State(enum.StrEnum):
    """It is held once, and closed once."""

    HELD = "held"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class Outcome(enum.StrEnum):
    """What an event that names a reservation finds; in every case the usage is counted."""

    SETTLED = "settled"
    ALREADY_CLOSED = "already_closed"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Hold:
    """A wish to hold units: under the caller's id, for a time."""

    request_id: str
    ttl: timedelta
    caller: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What a caller asked for, as sent. A repeat of a request id is the same request if this is equal."""

    meter: str
    operation: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units held on the counter (meter, period_start) of an account."""

    account_id: str
    reservation_id: str
    request_id: str
    meter: str
    period_start: datetime
    units: int
    sent: Sent
    state: State
    expires_at: datetime

    @property
    def counter_key(self) -> tuple[str, str, datetime]:
        """Return the key of the counter that holds it."""
        return (self.account_id, self.meter, self.period_start)

    def state_at(self, now: datetime) -> State:
        """Return its state: a hold whose time is over has expired, whether or not it was swept."""
        return State.EXPIRED if self.state is State.HELD and self.expires_at <= now else self.state
