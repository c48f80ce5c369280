"""The inbox and the leases of Stripe objects in Postgres."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import tables
from billing_svc.stripe_events import rules

# An object's worker is given this long: a fetch with all its retries and a transaction stay below it. A worker that was
# killed holds up its object for as long.
LEASE = timedelta(seconds=30)
# An object's events that are applied together; the rest follow in the next round.
EVENTS_MAX = 500

_EVENTS = tables.stripe_events
_OBJECTS = tables.stripe_objects


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that waits to be applied."""

    event_id: str
    type: str
    attempts: int
    body: bytes


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


async def lease(conn: AsyncConnection, object_id: str, now: datetime) -> int | None:
    """Take the lease of an object; returns its number, or None while somebody else has it."""
    insert_ = postgresql.insert(_OBJECTS).values(object_id=object_id, fence=1, leased_until=now + LEASE)
    result = await conn.execute(
        insert_.on_conflict_do_update(
            index_elements=[_OBJECTS.c.object_id],
            set_={"fence": _OBJECTS.c.fence + 1, "leased_until": insert_.excluded.leased_until},
            where=_OBJECTS.c.leased_until <= now,
        ).returning(_OBJECTS.c.fence)
    )
    fence: int | None = result.scalar_one_or_none()
    return fence


async def end_lease(conn: AsyncConnection, object_id: str, fence: int, now: datetime) -> bool:
    """Give the lease back, first thing in the transaction that applies; returns whether it was still one's own.

    The row stays locked until that transaction ends, so nobody takes the object before the outcome is visible.
    """
    result = await conn.execute(
        sa.update(_OBJECTS).where(_OBJECTS.c.object_id == object_id, _OBJECTS.c.fence == fence).values(leased_until=now)
    )
    return result.rowcount == 1


async def waiting(conn: AsyncConnection, object_id: str) -> list[Waiting]:
    """Return the events of an object that wait, in the order in which they came."""
    query = (
        sa.select(_EVENTS.c.event_id, _EVENTS.c.type, _EVENTS.c.attempts, _EVENTS.c.body)
        .where(_EVENTS.c.object_id == object_id, _EVENTS.c.state == "waiting")
        .order_by(_EVENTS.c.received_at, _EVENTS.c.event_id)
        .limit(EVENTS_MAX)
    )
    return [Waiting(*row) for row in await conn.execute(query)]


async def close(
    conn: AsyncConnection, event_ids: Collection[str], state: str, account_id: str, note: str | None, now: datetime
) -> None:
    """Mark events `applied`, `ignored` or `failed`."""
    values: dict[str, Any] = {"state": state, "account_id": account_id, "note": note, "closed_at": now}
    await conn.execute(_waiting_of(event_ids).values(attempts=_EVENTS.c.attempts + 1, **values))


async def postpone(conn: AsyncConnection, event_ids: Collection[str], until: datetime, note: str) -> None:
    """Let events wait for a later attempt."""
    values = {"next_attempt_at": until, "note": note}
    await conn.execute(_waiting_of(event_ids).values(attempts=_EVENTS.c.attempts + 1, **values))


def _waiting_of(event_ids: Collection[str]) -> sa.Update:
    return sa.update(_EVENTS).where(_EVENTS.c.event_id.in_(event_ids), _EVENTS.c.state == "waiting")
