"""Closes a checkout page, after an event of Stripe or during the account's next order."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.subscriptions.checkouts import store


async def close(
    conn: AsyncConnection, account_id: str, checkout_id: str, state: str, origin: audit_store.Origin, now: datetime
) -> None:
    """Mark a page `complete` or `expired`, with an audit entry. A page that is closed already does not change."""
    if await store.close(conn, account_id, checkout_id, state, now):
        changes = {"checkout": checkout_id, "state": state}
        await audit_store.append(conn, origin, account_id, "checkout.closed", changes, now)
