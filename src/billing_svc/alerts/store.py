"""Alerts in Postgres. The key is what makes each one unique."""

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.alerts import rules
from billing_svc.database import tables


async def raise_alerts(
    conn: AsyncConnection, alerts: Sequence[tuple[tuple[str, str, datetime], rules.Alert]], now: datetime
) -> None:
    """Store alerts of counters (account, meter, period start); one that was raised before stays as it was."""
    if alerts:
        await conn.execute(
            postgresql.insert(tables.usage_alerts).on_conflict_do_nothing(),
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
                for (account_id, meter, period_start), alert in alerts
            ],
        )
