"""Taking up again what failed, once its cause is mended."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.usage_export import rules, store


async def retry_all(
    conn: AsyncConnection, account_id: str, origin: audit_store.Origin, now: datetime
) -> Sequence[rules.Report]:
    """Let an account's failed slices be sent again, and return them.

    One that is certain not to be at Stripe gets a new identifier. Of one that may be there, the meter's sum tells
    first. What its meter cannot bill any more becomes an invoice item.
    """
    failed = await store.failed(conn, account_id)
    for report in failed:
        values: dict[str, Any] = {"state": "sealed", "next_attempt_at": now, "closed_at": None}
        if report.first_attempt_at is None:
            values |= {"identifier": uuid.uuid4().hex, "attempts": 0, "last_attempt_at": None, "refused_at": None}
        else:
            values |= {"refused_at": report.refused_at or now}
        if await store.write(conn, report, values):
            changes = {"report": report.report_id, "meter": report.meter, "units": report.units}
            await audit_store.append(conn, origin, account_id, "usage.report_retried", changes, now)
    return failed
