"""Acknowledging an alert: once, with an audit row that names who did it."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.alerts import store
from billing_svc.platform import errors
from billing_svc.platform.audit import store as audit_store


async def acknowledge(
    conn: AsyncConnection, account_id: str, alert_id: str, origin: audit_store.Origin, now: datetime
) -> store.StoredAlert:
    """Mark an alert as acknowledged and return it; a repeat changes nothing. Raises AlertNotFound."""
    caller = origin.actor.partition(":")[2]
    is_first = await store.acknowledge(conn, account_id, alert_id, caller, now)
    alert = await store.find(conn, account_id, alert_id)
    if alert is None:
        raise errors.AlertNotFound(f"alert_id: the account has no alert {alert_id!r}", {"alert_id": alert_id})
    if is_first:
        changes = {"alert": alert_id, "meter": alert.meter, "percent": alert.threshold_percent}
        await audit_store.append(conn, origin, account_id, "acknowledge_alert", changes, now)
    return alert
