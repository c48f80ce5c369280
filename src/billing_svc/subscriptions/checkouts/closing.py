"""The end of a checkout page, whoever learns of it first: an event of Stripe's, or the next order."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.subscriptions.checkouts import store


async def close(
    conn: AsyncConnection, account_id: str, checkout_id: str, state: str, origin: audit_store.Origin, now: datetime
) -> None:
    """Mark a page `complete` or `expired`, under audit. One that is closed stays as it is."""
    if await store.close(conn, account_id, checkout_id, state, now):
        changes = {"checkout": checkout_id, "state": state}
        await audit_store.append(conn, origin, account_id, "checkout.closed", changes, now)
