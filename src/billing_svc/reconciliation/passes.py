"""The pass of the scheduled comparison in Postgres: a single row, which a worker leases while it works on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

# What changed since the last pass is compared so often, and everything so often.
PASS_EVERY = timedelta(hours=6)
FULL_EVERY = timedelta(days=7)
# Longer than a step takes: the lists of Stripe's objects, or the usage of some accounts. After a worker was killed, the
# pass waits so long.
LEASE = timedelta(minutes=30)

_PASSES = tables.reconcile_passes
_NAME = "scheduled"


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass under way, or that is due."""

    fence: int
    began_at: datetime
    ended_at: datetime | None
    full_began_at: datetime | None
    is_full: bool
    changed_since: datetime
    objects_compared: bool
    after_account: str
    reads: int


async def lease(conn: AsyncConnection, now: datetime) -> Pass | None:
    """Take the pass that is due; None if none is due or another worker has it.

    The first pass is due some hours after the first worker started: a new installation has nothing to compare.
    """
    insert = postgresql.insert(_PASSES).values(
        name=_NAME,
        fence=0,
        leased_until=now,
        due_at=now + PASS_EVERY,
        began_at=now,
        ended_at=now,
        is_full=False,
        changed_since=now,
        objects_compared=False,
        after_account="",
        reads=0,
    )
    await conn.execute(insert.on_conflict_do_nothing())
    taken = await conn.execute(
        sa.update(_PASSES)
        .where(_PASSES.c.name == _NAME, _PASSES.c.due_at <= now, _PASSES.c.leased_until <= now)
        .values(fence=_PASSES.c.fence + 1, leased_until=now + LEASE)
        .returning(*select_list.columns(Pass, _PASSES))
    )
    row = taken.one_or_none()
    return None if row is None else Pass(*row)


async def save(conn: AsyncConnection, held: Pass, values: Mapping[str, Any]) -> bool:
    """Write how far a pass came; returns whether this worker still holds it."""
    is_it = (_PASSES.c.name == _NAME, _PASSES.c.fence == held.fence)
    return (await conn.execute(sa.update(_PASSES).where(*is_it).values(**values))).rowcount == 1


def begun(last: Pass, now: datetime) -> dict[str, Any]:
    """Return the columns of the pass that follows the last one."""
    is_full = last.full_began_at is None or now - last.full_began_at >= FULL_EVERY
    return {
        "began_at": now,
        "ended_at": None,
        "is_full": is_full,
        "changed_since": last.began_at,
        "objects_compared": False,
        "after_account": "",
        "reads": 0,
    }
