"""The inbox in Postgres."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import rules
from billing_svc.platform.database import select_list, tables

# An object's events that are applied together; the rest follow in the next round.
EVENTS_MAX = 500
# Bodies deleted in one transaction; the worker's loop calls again at once for more.
BODIES_MAX = 500
# The maximum length of a note, which the contract promises.
NOTE_LENGTH_MAX = 1000
# The first events of what a customer has just bought and waits for. At a period's end there are thousands of others.
BOUGHT = ("checkout.session.completed", "customer.subscription.created")

_EVENTS = tables.stripe_events
_OBJECTS = tables.stripe_objects

# The position of an event in a list: when it was received, and its id.
Position: TypeAlias = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Pending:
    """An event to be applied: it is waiting, or it failed before."""

    event_id: str
    state: str
    attempts: int
    next_attempt_at: datetime
    body: bytes


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to select; a field that is None or empty matches all events."""

    state: str = ""
    type: str = ""
    object_id: str = ""
    account_id: str = ""
    received_from: datetime | None = None
    received_before: datetime | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """Return the SQL conditions of the filter."""
        found = [
            _EVENTS.c[name] == value
            for name in ("state", "type", "object_id", "account_id")
            if (value := getattr(self, name))
        ]
        if self.received_from is not None:
            found.append(_EVENTS.c.received_at >= self.received_from)
        if self.received_before is not None:
            found.append(_EVENTS.c.received_at < self.received_before)
        return found


@dataclass(frozen=True, slots=True)
class InboxEvent:
    """An event as stored, without its body, which may hold personal data."""

    event_id: str
    type: str
    object_id: str
    account_id: str
    livemode: bool
    api_version: str | None
    created_at: datetime
    received_at: datetime
    state: str
    attempts: int
    next_attempt_at: datetime
    note: str | None
    closed_at: datetime | None

    @property
    def position(self) -> Position:
        """Return the event's position in a list."""
        return (self.received_at, self.event_id)


async def insert(conn: AsyncConnection, event: rules.Event, ignored_because: str | None, now: datetime) -> bool:
    """Store an event under its id; returns whether it is new. With `ignored_because` it is closed at once."""
    inserted = await conn.execute(
        postgresql.insert(_EVENTS)
        .values(
            event_id=event.event_id,
            type=event.type,
            object_id=event.object_id,
            livemode=event.livemode,
            api_version=event.api_version,
            created_at=event.created_at,
            received_at=now,
            body=event.body,
            state="waiting" if ignored_because is None else "ignored",
            next_attempt_at=now,
            note=ignored_because,
            closed_at=None if ignored_because is None else now,
        )
        .on_conflict_do_nothing()
        # Without RETURNING, an INSERT reports no row count here.
        .returning(_EVENTS.c.event_id)
    )
    return inserted.scalar_one_or_none() is not None


async def due_objects(conn: AsyncConnection, most: int, now: datetime) -> list[str]:
    """Return the objects with due events that no worker has leased: first what was bought, then the longest waiting."""
    query = (
        sa.select(_EVENTS.c.object_id)
        .outerjoin(_OBJECTS, _OBJECTS.c.object_id == _EVENTS.c.object_id)
        .where(_EVENTS.c.state == "waiting", _EVENTS.c.next_attempt_at <= now)
        .where(sa.or_(_OBJECTS.c.leased_until.is_(None), _OBJECTS.c.leased_until <= now))
        .group_by(_EVENTS.c.object_id)
        .order_by(sa.func.bool_or(_EVENTS.c.type.in_(BOUGHT)).desc(), sa.func.min(_EVENTS.c.next_attempt_at))
        .limit(most)
    )
    return list((await conn.execute(query)).scalars())


async def pending(conn: AsyncConnection, object_id: str) -> list[Pending]:
    """Return an object's waiting events in the order of their arrival, and after them its failed events.

    Empty if no event waits. A single fetch serves all events of an object, so a new event also retries failed events.
    """
    query = (
        sa.select(*select_list.columns(Pending, _EVENTS))
        .where(_EVENTS.c.object_id == object_id, _EVENTS.c.state.in_(("waiting", "failed")))
        .order_by(_EVENTS.c.state.desc(), _EVENTS.c.received_at, _EVENTS.c.event_id)
        .limit(EVENTS_MAX)
    )
    found = [Pending(*row) for row in await conn.execute(query)]
    return found if found and found[0].state == "waiting" else []


async def close(
    conn: AsyncConnection, event_ids: Collection[str], state: str, account_id: str, note: str | None, now: datetime
) -> None:
    """Mark events `applied`, `ignored` or `failed`."""
    values: dict[str, Any] = {"state": state, "account_id": account_id, "note": _cut(note), "closed_at": now}
    await conn.execute(_in_state(event_ids, "waiting", "failed").values(attempts=_EVENTS.c.attempts + 1, **values))


async def postpone(conn: AsyncConnection, event_ids: Collection[str], until: datetime, note: str) -> None:
    """Set the next attempt of the waiting events among `event_ids`."""
    values = {"next_attempt_at": until, "note": _cut(note)}
    await conn.execute(_in_state(event_ids, "waiting").values(attempts=_EVENTS.c.attempts + 1, **values))


async def list_events(
    conn: AsyncConnection, choice: EventFilter, after: Position | None, most: int
) -> list[InboxEvent]:
    """Return events, newest first, that follow the position `after`."""
    query = sa.select(*select_list.columns(InboxEvent, _EVENTS)).where(*choice.conditions())
    order = (_EVENTS.c.received_at, _EVENTS.c.event_id)
    if after is not None:
        query = query.where(sa.tuple_(*order) < sa.tuple_(*(sa.literal(one) for one in after)))
    rows = await conn.execute(query.order_by(*(column.desc() for column in order)).limit(most))
    return [InboxEvent(*row) for row in rows]


async def bodies_kept(conn: AsyncConnection, event_ids: Collection[str]) -> dict[str, bool]:
    """Return for each known event whether its body is still stored."""
    query = sa.select(_EVENTS.c.event_id, _EVENTS.c.body.is_not(None)).where(_EVENTS.c.event_id.in_(event_ids))
    return {row[0]: row[1] for row in await conn.execute(query)}


async def replayable(conn: AsyncConnection, choice: EventFilter, most: int) -> list[str]:
    """Return the ids of events that match `choice` and still have their body, the longest stored first."""
    query = sa.select(_EVENTS.c.event_id).where(*choice.conditions(), _EVENTS.c.body.is_not(None))
    return list((await conn.execute(query.order_by(_EVENTS.c.received_at, _EVENTS.c.event_id).limit(most))).scalars())


async def replay(conn: AsyncConnection, event_ids: Sequence[str], now: datetime) -> int:
    """Make events that still have their body wait again, due now; returns their number."""
    result = await conn.execute(
        sa.update(_EVENTS)
        # A single array parameter, so that the statement's text does not depend on the number of events.
        .where(_EVENTS.c.event_id == sa.any_(sa.literal(list(event_ids), postgresql.ARRAY(sa.Text))))
        .where(_EVENTS.c.body.is_not(None))
        .values(state="waiting", attempts=0, next_attempt_at=now, note=None, closed_at=None)
    )
    return result.rowcount


async def forget_bodies(conn: AsyncConnection, closed_before: datetime, most: int = BODIES_MAX) -> int:
    """Delete the bodies of events that were applied or ignored before an instant; returns their number."""
    old = (
        sa.select(_EVENTS.c.event_id)
        .where(_EVENTS.c.body.is_not(None), _EVENTS.c.state.in_(("applied", "ignored")))
        .where(_EVENTS.c.closed_at < closed_before)
        .order_by(_EVENTS.c.closed_at)
        .limit(most)
    )
    event_ids = list((await conn.execute(old)).scalars())
    if not event_ids:
        return 0
    # The state is checked again, because an event may have been replayed meanwhile.
    result = await conn.execute(_in_state(event_ids, "applied", "ignored").values(body=None))
    return result.rowcount


def _in_state(event_ids: Collection[str], *states: str) -> sa.Update:
    return sa.update(_EVENTS).where(_EVENTS.c.event_id.in_(event_ids), _EVENTS.c.state.in_(states))


def _cut(note: str | None) -> str | None:
    return None if note is None else note[:NOTE_LENGTH_MAX]
