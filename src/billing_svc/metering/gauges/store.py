"""Gauge levels in Postgres."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.gauges import rules
from billing_svc.platform.database import tables

# Account and meter.
GaugeKey: TypeAlias = tuple[str, str]

_LEVELS = tables.gauge_levels

# In key order, so that processes cannot deadlock.
_LOCK = sa.text("""
    SELECT g.account_id, g.meter, g.level, g.set_at
      FROM gauge_levels g
     WHERE (g.account_id, g.meter) IN (SELECT * FROM unnest(CAST(:account_ids AS text[]), CAST(:meters AS text[])))
     ORDER BY g.account_id, g.meter
       FOR UPDATE OF g
""")

# `opened_until` only moves back here. A plan that changed after this transaction read its terms has moved it back, so
# that the gauge is opened again; only the worker, which keeps plans from changing meanwhile, moves it forward.
_UPDATE = sa.text("""
    UPDATE gauge_levels g
       SET level = new.level, set_at = new.set_at, opened_until = least(g.opened_until, new.opened_until)
      FROM unnest(CAST(:account_ids AS text[]), CAST(:meters AS text[]), CAST(:levels AS bigint[]),
                  CAST(:set_at AS timestamptz[]), CAST(:opened_until AS timestamptz[]))
           AS new (account_id, meter, level, set_at, opened_until)
     WHERE (g.account_id, g.meter) = (new.account_id, new.meter)
""")

_MARK_OPENED = sa.text("""
    UPDATE gauge_levels g
       SET opened_until = new.opened_until
      FROM unnest(CAST(:account_ids AS text[]), CAST(:meters AS text[]), CAST(:opened_until AS timestamptz[]))
           AS new (account_id, meter, opened_until)
     WHERE (g.account_id, g.meter) = (new.account_id, new.meter)
""")


async def lock(conn: AsyncConnection, keys: Collection[GaugeKey], now: datetime) -> dict[GaugeKey, rules.Level]:
    """Lock levels until the end of the transaction and return them; a missing level is created at 0, to be opened."""
    await conn.execute(
        postgresql.insert(_LEVELS).on_conflict_do_nothing(),
        [
            {"account_id": account_id, "meter": meter, "level": 0, "opened_until": now}
            for account_id, meter in sorted(keys)
        ],
    )
    rows = await conn.execute(_LOCK, _key_columns(keys))
    return {(account_id, meter): rules.Level(level, set_at) for account_id, meter, level, set_at in rows}


async def update(
    conn: AsyncConnection, levels: Mapping[GaugeKey, rules.Level], period_ends: Mapping[GaugeKey, datetime]
) -> None:
    """Write locked levels; their peaks are counted until the ends of these periods, and then opened again."""
    await conn.execute(
        _UPDATE,
        {
            **_key_columns(levels),
            "levels": [level.level for level in levels.values()],
            "set_at": [level.set_at for level in levels.values()],
            "opened_until": [period_ends[key] for key in levels],
        },
    )


async def mark_opened(conn: AsyncConnection, period_ends: Mapping[GaugeKey, datetime]) -> None:
    """Write until when locked levels have an open period."""
    await conn.execute(_MARK_OPENED, {**_key_columns(period_ends), "opened_until": list(period_ends.values())})


async def due(conn: AsyncConnection, most: int, now: datetime) -> list[GaugeKey]:
    """Return gauges with a level above 0 whose present period was not opened yet."""
    query = sa.select(_LEVELS.c.account_id, _LEVELS.c.meter).where(_LEVELS.c.level > 0, _LEVELS.c.opened_until <= now)
    return [
        (row.account_id, row.meter) for row in await conn.execute(query.order_by(_LEVELS.c.opened_until).limit(most))
    ]


async def reopen(conn: AsyncConnection, account_id: str, now: datetime) -> None:
    """Make the account's gauges due to be opened again, because its periods or included quantities have changed."""
    await conn.execute(
        sa.update(_LEVELS)
        .where(_LEVELS.c.account_id == account_id, _LEVELS.c.opened_until > now)
        .values(opened_until=now)
    )


def _key_columns(keys: Collection[GaugeKey]) -> dict[str, list[str]]:
    return {"account_ids": [key[0] for key in keys], "meters": [key[1] for key in keys]}
