"""Alerts in Postgres. The primary key stores each threshold of a period once."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.alerts import rules
from billing_svc.platform.database import select_list, tables

_ALERTS = tables.usage_alerts
_COUNTERS = tables.usage_counters

# An alert's place in a list: when it was raised, its threshold, its id.
Position: TypeAlias = tuple[datetime, int, str]


async def insert_alerts(
    conn: AsyncConnection, alerts: Sequence[tuple[tuple[str, str, datetime], rules.Alert]], now: datetime
) -> None:
    """Store alerts of counters (account, meter, period start); an alert that was raised before is left unchanged."""
    if alerts:
        await conn.execute(
            postgresql.insert(_ALERTS).on_conflict_do_nothing(),
            [
                {
                    "account_id": account_id,
                    "meter": meter,
                    "period_start": period_start,
                    "threshold_percent": alert.threshold_percent,
                    "included": alert.included,
                    "alert_id": uuid.uuid4().hex,
                    "severity": alert.severity,
                    "used": alert.used,
                    "raised_at": now,
                }
                # In key order, so that processes cannot deadlock.
                for (account_id, meter, period_start), alert in sorted(alerts, key=lambda one: one[0])
            ],
        )


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """A stored alert, with the end of the period in which it was raised."""

    account_id: str
    alert_id: str
    meter: str
    threshold_percent: int
    severity: str
    used: int
    included: int
    period_start: datetime
    period_end: datetime
    raised_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None

    @property
    def position(self) -> Position:
        """Return its place in the list."""
        return (self.raised_at, self.threshold_percent, self.alert_id)


async def list_alerts(
    conn: AsyncConnection,
    account_id: str,
    choice: rules.AlertFilter,
    after: Position | None,
    most: int,
) -> list[StoredAlert]:
    """Return an account's alerts after a position, newest first; alerts of the same event by falling threshold."""
    query = _query(account_id)
    if choice.meter:
        query = query.where(_ALERTS.c.meter == choice.meter)
    if not choice.with_acknowledged:
        query = query.where(_ALERTS.c.acknowledged_at.is_(None))
    order = (_ALERTS.c.raised_at, _ALERTS.c.threshold_percent, _ALERTS.c.alert_id)
    if after is not None:
        query = query.where(sa.tuple_(*order) < sa.tuple_(*(sa.literal(one) for one in after)))
    rows = await conn.execute(query.order_by(*(column.desc() for column in order)).limit(most))
    return [StoredAlert(*row) for row in rows]


async def count_open(conn: AsyncConnection, account_id: str) -> int:
    """Return how many of the account's alerts are not acknowledged."""
    query = sa.select(sa.func.count()).where(_ALERTS.c.account_id == account_id, _ALERTS.c.acknowledged_at.is_(None))
    return int((await conn.execute(query)).scalar_one())


async def find(conn: AsyncConnection, account_id: str, alert_id: str) -> StoredAlert | None:
    """Return an alert of the account; None if it has no alert of that id."""
    row = (await conn.execute(_query(account_id).where(_ALERTS.c.alert_id == alert_id))).one_or_none()
    return None if row is None else StoredAlert(*row)


async def acknowledge(conn: AsyncConnection, account_id: str, alert_id: str, caller: str, now: datetime) -> bool:
    """Mark an alert as acknowledged; returns False if it does not exist, or was acknowledged before, which stays."""
    updated = await conn.execute(
        sa.update(_ALERTS)
        .where(_ALERTS.c.account_id == account_id, _ALERTS.c.alert_id == alert_id, _ALERTS.c.acknowledged_at.is_(None))
        .values(acknowledged_at=now, acknowledged_by=caller)
    )
    return updated.rowcount == 1


def _query(account_id: str) -> sa.Select[tuple[Any, ...]]:
    # The period's end is in the counter, which is written in the same transaction as the alert.
    is_its = sa.and_(
        *(_COUNTERS.c[name] == _ALERTS.c[name] for name in ("account_id", "meter", "period_start")),
        _COUNTERS.c.account_id == account_id,
    )
    columns = select_list.columns(StoredAlert, _ALERTS, period_end=_COUNTERS.c.period_end)
    return sa.select(*columns).join_from(_ALERTS, _COUNTERS, is_its).where(_ALERTS.c.account_id == account_id)
