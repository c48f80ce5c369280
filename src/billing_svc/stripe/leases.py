"""Leases of Stripe's objects: who may bring one's row up to date now, in Postgres.

The lease has a number that grows with each holder. A holder that was overtaken finds its number gone when it ends its
lease, first thing in the transaction that writes, and writes nothing.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables

# A fetch with all its retries and a transaction stay below it. A holder that was killed holds it up for as long.
LEASE = timedelta(seconds=30)

_OBJECTS = tables.stripe_objects


class Overtaken(Exception):
    """Somebody else holds the object now."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write what an object of Stripe's is, until `end` or until its time is over."""

    object_id: str
    fence: int


async def take(conn: AsyncConnection, object_id: str, now: datetime) -> Lease | None:
    """Take the lease of an object; None while somebody else has it."""
    insert = postgresql.insert(_OBJECTS).values(object_id=object_id, fence=1, leased_until=now + LEASE)
    result = await conn.execute(
        insert.on_conflict_do_update(
            index_elements=[_OBJECTS.c.object_id],
            set_={"fence": _OBJECTS.c.fence + 1, "leased_until": insert.excluded.leased_until},
            where=_OBJECTS.c.leased_until <= now,
        ).returning(_OBJECTS.c.fence)
    )
    fence: int | None = result.scalar_one_or_none()
    return None if fence is None else Lease(object_id, fence)


async def renew(conn: AsyncConnection, lease: Lease, now: datetime) -> bool:
    """Keep a lease for as long again, first thing in a transaction that writes; returns whether it is still one's own.

    The row stays locked until that transaction ends.
    """
    result = await conn.execute(
        sa.update(_OBJECTS)
        .where(_OBJECTS.c.object_id == lease.object_id, _OBJECTS.c.fence == lease.fence)
        .values(leased_until=now + LEASE)
    )
    return result.rowcount == 1


async def end(conn: AsyncConnection, lease: Lease, now: datetime) -> bool:
    """Give a lease back, first thing in the transaction that writes; returns whether it was still one's own.

    The row stays locked until that transaction ends, so nobody takes the object before the outcome is visible.
    """
    result = await conn.execute(
        sa.update(_OBJECTS)
        .where(_OBJECTS.c.object_id == lease.object_id, _OBJECTS.c.fence == lease.fence)
        .values(leased_until=now)
    )
    return result.rowcount == 1
