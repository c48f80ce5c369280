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
# Bodies deleted in one transaction; the loop comes again at once for more.
BODIES_MAX = 500
# What a note may hold; the contract says so.
NOTE_LENGTH_MAX = 1000

_EVENTS = tables.stripe_events
_OBJECTS = tables.stripe_objects

# When it was received, and its id: where an event stands in a list.
Position: TypeAlias = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Pending:
    """An event that is to be applied: one that waits, or one that failed before."""

    event_id: str
    state: str
    attempts: int
    next_attempt_at: datetime
    body: bytes


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are meant; what is None or empty does not narrow it."""

    state: str = ""
    type: str = ""
    object_id: str = ""
    account_id: str = ""
    received_from: datetime | None = None
    received_before: datetime | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """Return what an event must fulfil."""
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
        """Return its place in the list."""
        return (self.received_at, self.event_id)


async def insert(conn: AsyncConnection, event: rules.Event, ignored_because: str | None, now: datetime) -> bool:
    """Keep an event under its id; returns whether it is new. One that is ignored waits for nothing."""
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
        # An INSERT tells no row count otherwise.
        .returning(_EVENTS.c.event_id)
    )
    return inserted.scalar_one_or_none() is not None


async def due_objects(conn: AsyncConnection, most: int, now: datetime) -> list[str]:
    """Return the objects that have events to be applied now and that nobody works on, the longest waiting first."""
    query = (
        sa.select(_EVENTS.c.object_id)
        .outerjoin(_OBJECTS, _OBJECTS.c.object_id == _EVENTS.c.object_id)
        .where(_EVENTS.c.state == "waiting", _EVENTS.c.next_attempt_at <= now)
        .where(sa.or_(_OBJECTS.c.leased_until.is_(None), _OBJECTS.c.leased_until <= now))
        .group_by(_EVENTS.c.object_id)
        .order_by(sa.func.min(_EVENTS.c.next_attempt_at))
        .limit(most)
    )
    return list((await conn.execute(query)).scalars())


async def pending(conn: AsyncConnection, object_id: str) -> list[Pending]:
    """Return the events of an object that wait, in the order in which they came, and after them those that failed.

    None if none waits. What one fresh fetch serves it serves for all, so a new event tries the failed ones again.
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
    """Let those events that wait do so for a later attempt."""
    values = {"next_attempt_at": until, "note": _cut(note)}
    await conn.execute(_in_state(event_ids, "waiting").values(attempts=_EVENTS.c.attempts + 1, **values))


async def list_events(
    conn: AsyncConnection, choice: EventFilter, after: Position | None, most: int
) -> list[InboxEvent]:
    """Return events, newest first; those after a position."""
    query = sa.select(*select_list.columns(InboxEvent, _EVENTS)).where(*choice.conditions())
    order = (_EVENTS.c.received_at, _EVENTS.c.event_id)
    if after is not None:
        query = query.where(sa.tuple_(*order) < sa.tuple_(*(sa.literal(one) for one in after)))
    rows = await conn.execute(query.order_by(*(column.desc() for column in order)).limit(most))
    return [InboxEvent(*row) for row in rows]


async def bodies_kept(conn: AsyncConnection, event_ids: Collection[str]) -> dict[str, bool]:
    """Return of each event that is known whether its body is still there."""
    query = sa.select(_EVENTS.c.event_id, _EVENTS.c.body.is_not(None)).where(_EVENTS.c.event_id.in_(event_ids))
    return {row[0]: row[1] for row in await conn.execute(query)}


async def replayable(conn: AsyncConnection, choice: EventFilter, most: int) -> list[str]:
    """Return the events of a choice whose body is still there, the longest stored first."""
    query = sa.select(_EVENTS.c.event_id).where(*choice.conditions(), _EVENTS.c.body.is_not(None))
    return list((await conn.execute(query.order_by(_EVENTS.c.received_at, _EVENTS.c.event_id).limit(most))).scalars())


async def replay(conn: AsyncConnection, event_ids: Sequence[str], now: datetime) -> int:
    """Let events wait again, from now on; returns how many there were with their body."""
    result = await conn.execute(
        sa.update(_EVENTS)
        # One array, however many there are.
        .where(_EVENTS.c.event_id == sa.any_(sa.literal(list(event_ids), postgresql.ARRAY(sa.Text))))
        .where(_EVENTS.c.body.is_not(None))
        .values(state="waiting", attempts=0, next_attempt_at=now, note=None, closed_at=None)
    )
    return result.rowcount


async def forget_bodies(conn: AsyncConnection, closed_before: datetime, most: int = BODIES_MAX) -> int:
    """Delete the bodies of events that were applied or ignored before an instant; returns of how many."""
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
    # The state again: meanwhile it may have been replayed.
    result = await conn.execute(_in_state(event_ids, "applied", "ignored").values(body=None))
    return result.rowcount


def _in_state(event_ids: Collection[str], *states: str) -> sa.Update:
    return sa.update(_EVENTS).where(_EVENTS.c.event_id.in_(event_ids), _EVENTS.c.state.in_(states))


def _cut(note: str | None) -> str | None:
    return None if note is None else note[:NOTE_LENGTH_MAX]
