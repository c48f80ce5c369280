"""Taking up again what failed, once its cause is mended."""

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.usage_export import rules, states, store


async def retry_all(
    conn: AsyncConnection, account_id: str, origin: audit_store.Origin, now: datetime
) -> Sequence[rules.UsageReport]:
    """Let an account's failed slices be sent again, and return them.

    One that is certain not to be at Stripe gets a new identifier. Of one that may be there, the meter's sum tells
    first. What its meter cannot bill any more becomes an invoice item.
    """
    failed = await store.failed(conn, account_id)
    for report in failed:
        change = states.retried(now, uuid.uuid4().hex, report.first_attempt_at, report.refused_at)
        if await store.write(conn, report, change):
            changes = {"report": report.report_id, "meter": report.meter, "units": report.units}
            await audit_store.append(conn, origin, account_id, "usage.report_retried", changes, now)
    return failed
