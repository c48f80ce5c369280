"""Unlinks an account from its customer that was deleted at Stripe: the next checkout creates a new customer."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables


async def unlink(
    conn: AsyncConnection, account_id: str, customer_id: str, origin: audit_store.Origin, now: datetime
) -> bool:
    """Unlink an account's customer, with the audit row; returns whether it was the account's current customer.

    The customer stays mapped to its account, because the last events of its subscriptions may still arrive.
    """
    await accounts_store.lock(conn, account_id)
    customers, accounts = tables.stripe_customers.c, tables.accounts.c
    deleted = await conn.execute(
        sa.update(tables.stripe_customers)
        .where(customers.customer_id == customer_id, customers.deleted_at.is_(None))
        .values(deleted_at=now)
    )
    unlinked = await conn.execute(
        sa.update(tables.accounts)
        .where(accounts.account_id == account_id, accounts.customer_id == customer_id)
        .values(customer_id=None)
    )
    if deleted.rowcount:
        await audit_store.append(conn, origin, account_id, "customer.unlinked", {"customer": customer_id}, now)
    return bool(unlinked.rowcount)
