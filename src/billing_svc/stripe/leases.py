"""Leases of Stripe's objects, in Postgres: only the lease's holder may update the stored row.

Each holder gets a higher number. A holder that was overtaken finds another number when it renews or ends its lease, at
the start of its writing transaction, and writes nothing.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables

# Longer than a fetch with all its retries and a transaction. After a holder was killed, the object waits so long.
LEASE = timedelta(seconds=30)

_OBJECTS = tables.stripe_objects


class Overtaken(Exception):
    """Another process holds the lease now."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to update the row of a Stripe object, until `end` or until the lease expires."""

    object_id: str
    fence: int


async def take(conn: AsyncConnection, object_id: str, now: datetime) -> Lease | None:
    """Take the lease of an object; None while another process holds it."""
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
    """Extend a lease, at the start of a writing transaction; returns whether this process still holds it.

    The row stays locked until that transaction ends.
    """
    result = await conn.execute(
        sa.update(_OBJECTS)
        .where(_OBJECTS.c.object_id == lease.object_id, _OBJECTS.c.fence == lease.fence)
        .values(leased_until=now + LEASE)
    )
    return result.rowcount == 1


async def end(conn: AsyncConnection, lease: Lease, now: datetime) -> bool:
    """End a lease, at the start of a writing transaction; returns whether this process still held it.

    The row stays locked until that transaction ends, so no other process takes the lease before the outcome is visible.
    """
    result = await conn.execute(
        sa.update(_OBJECTS)
        .where(_OBJECTS.c.object_id == lease.object_id, _OBJECTS.c.fence == lease.fence)
        .values(leased_until=now)
    )
    return result.rowcount == 1
