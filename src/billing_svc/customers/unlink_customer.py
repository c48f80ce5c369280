"""Unlinks an account from its customer that was deleted at Stripe: the next checkout creates a new customer."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import store
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store


async def unlink(
    conn: AsyncConnection, account_id: str, customer_id: str, origin: audit_store.Origin, now: datetime
) -> bool:
    """Unlink an account's customer, with the audit row; returns whether it was the account's current customer.

    The customer stays mapped to its account, because the last events of its subscriptions may still arrive.
    """
    await accounts_store.lock(conn, account_id)
    is_new = await store.mark_deleted(conn, customer_id, now)
    was_present = await accounts_store.clear_customer(conn, account_id, customer_id)
    if is_new:
        await audit_store.append(conn, origin, account_id, "customer.unlinked", {"customer": customer_id}, now)
    return was_present
