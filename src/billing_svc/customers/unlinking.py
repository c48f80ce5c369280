"""Parting an account from its customer at Stripe, which was deleted there: the next checkout makes a new one."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.subscriptions.records import store


async def unlink(
    conn: AsyncConnection, account_id: str, customer_id: str, origin: audit_store.Origin, now: datetime
) -> None:
    """Forget an account's customer, with the audit row; again, it changes nothing.

    Whose it was stays known: its subscriptions' last events are still to come.
    """
    await store.lock_account(conn, account_id)
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
    checkouts = tables.checkouts.c
    if unlinked.rowcount:
        # Nobody can pay on a page of a customer that is gone.
        await conn.execute(
            sa.update(tables.checkouts)
            .where(checkouts.account_id == account_id, checkouts.state.in_(("opening", "open")))
            .values(state="expired", closed_at=now)
        )
    if deleted.rowcount:
        await audit_store.append(conn, origin, account_id, "customer.unlinked", {"customer": customer_id}, now)
