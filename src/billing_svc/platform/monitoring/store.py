"""How far the worker is behind, read from the rows that wait for it."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables

# The states are literals: with parameters, the generic plan could not use the partial indexes.
_BACKLOGS = sa.text("""
SELECT 'stripe_events' AS queue,
       count(*) FILTER (WHERE state = 'waiting') AS waiting,
       min(received_at) FILTER (WHERE state = 'waiting') AS oldest,
       count(*) FILTER (WHERE state = 'failed') AS failed
  FROM stripe_events WHERE state IN ('waiting', 'failed')
UNION ALL
SELECT 'usage_reports',
       count(*) FILTER (WHERE state <> 'itemised'),
       min(sealed_at) FILTER (WHERE state <> 'itemised'),
       (SELECT count(*) FROM usage_reports WHERE state = 'failed')
  FROM usage_reports WHERE state IN ('sealed', 'late', 'itemised')
UNION ALL
SELECT 'duties', count(*), min(created_at), 0 FROM subscription_duties
""")

_EARLIEST_PERIOD_END = sa.text("SELECT min(period_end) FROM usage_reports WHERE state = 'sealed'")


@dataclass(frozen=True, slots=True)
class Backlog:
    """A queue: how many rows wait, since when the oldest row waits, and how many rows were given up."""

    queue: str
    waiting: int
    oldest: datetime | None
    failed: int

    def lag_seconds(self, now: datetime) -> float:
        """Return the oldest row's age."""
        return 0.0 if self.oldest is None else max(0.0, (now - self.oldest).total_seconds())


async def last_reconciliation(connection: AsyncConnection) -> tuple[int, datetime] | None:
    """Return the drift that the last full reconciliation left, and when that was; None before the first."""
    log = tables.audit_log.c
    query = (
        sa.select(log.changes["left"].as_integer(), log.at)
        .where(log.account_id == "", log.action == "reconciled")
        .order_by(log.at.desc())
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else (row[0], row[1])


async def earliest_period_end(connection: AsyncConnection) -> datetime | None:
    """Return when the earliest billing period ends, or ended, that has usage which is not sent; None without any."""
    found: datetime | None = (await connection.execute(_EARLIEST_PERIOD_END)).scalar_one()
    return found


async def paid_invoices(connection: AsyncConnection, since: datetime) -> int:
    """Return how many of the invoices created since an instant were paid with an amount above 0."""
    invoices = tables.invoices.c
    query = sa.select(sa.func.count()).where(invoices.created_at >= since, invoices.amount_paid > 0)
    return int((await connection.execute(query)).scalar_one())


async def backlogs(connection: AsyncConnection) -> list[Backlog]:
    """Return the backlogs: Stripe's events not applied, usage not sent, and follow-ups of subscriptions not done."""
    return [Backlog(**row) for row in (await connection.execute(_BACKLOGS)).mappings()]
