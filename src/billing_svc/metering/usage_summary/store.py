"""What usage summaries read in Postgres, beside what every decision reads.

The cost is bounded. Counters are found by key, for one account and meter at a time, no further back than a period can
reach. The split by operation and day reads the events of one account and period by ix_usage_events_period; Postgres
sums them, so a row for each operation and day is fetched, and statement_timeout ends a query that takes too long.
"""

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.quota import periods
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import store as quota_store
from billing_svc.metering.usage_summary import rules
from billing_svc.platform.database import select_list

_KEPT = select_list.SelectList()
_PERIOD = _KEPT.add_fields(periods.Period, "c", start="c.period_start", end="c.period_end")
_TOTALS = _KEPT.add_fields(quota_rules.Counter, "c")
_METER = _KEPT.add("c.meter")
_TERMS = _KEPT.add_fields(rules.KeptCounter, "c", without=("meter", "period", "counter"))
_SELECT_KEPT = sa.text(f"""
    SELECT {_KEPT}
      FROM usage_counters c
     WHERE c.account_id = :account_id AND c.meter = ANY(CAST(:meters AS text[]))
       AND c.period_start > :horizon AND c.period_start <= :at
""")  # noqa: S608 - constants of this file

# The corrected event is looked up by its key for each correction; a join might be planned to read all events.
_SELECT_SHARES = sa.text("""
    SELECT split.meter, split.operation, split.day, sum(split.units),
           count(*) FILTER (WHERE split.retry_attempt = 0 AND split.corrects_event_id IS NULL)
      FROM (SELECT e.meter, e.units, e.retry_attempt, e.corrects_event_id,
                   coalesce(CASE WHEN e.corrects_event_id IS NULL THEN e.sent_operation ELSE
                       (SELECT o.sent_operation FROM usage_events o
                         WHERE o.account_id = e.account_id AND o.event_id = e.corrects_event_id) END, '') AS operation,
                   CAST(CASE WHEN e.corrects_event_id IS NULL THEN e.occurred_at ELSE
                       (SELECT o.occurred_at FROM usage_events o
                         WHERE o.account_id = e.account_id AND o.event_id = e.corrects_event_id) END
                       AT TIME ZONE 'UTC' AS date) AS day
              FROM usage_events e
             WHERE e.account_id = :account_id AND e.meter = ANY(CAST(:meters AS text[]))
               AND e.period_start = :period_start
               AND e.account_id <> '') AS split  -- always so; the index asks for it
     GROUP BY split.meter, split.operation, split.day
""")


async def kept_counters(
    conn: AsyncConnection, account_id: str, meters: Collection[str], at: datetime
) -> list[rules.KeptCounter]:
    """Return the counters whose periods may contain `at`, with the terms that they were last written under."""
    rows = await conn.execute(
        _SELECT_KEPT,
        {"account_id": account_id, "meters": list(meters), "at": at, "horizon": at - quota_store.HORIZON},
    )
    return [
        rules.KeptCounter(row[_METER], periods.Period(*row[_PERIOD]), quota_rules.Counter(*row[_TOTALS]), *row[_TERMS])
        for row in rows
    ]


async def shares(
    conn: AsyncConnection, account_id: str, meters: Collection[str], period_start: datetime
) -> list[rules.OperationShare]:
    """Return what each operation used on each day of a period."""
    rows = await conn.execute(
        _SELECT_SHARES, {"account_id": account_id, "meters": list(meters), "period_start": period_start}
    )
    return [
        rules.OperationShare(meter, operation, day, int(used), events) for meter, operation, day, used, events in rows
    ]
