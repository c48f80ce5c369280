"""The link between accounts and their customers at Stripe, in Postgres."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables

# After a deletion at Stripe the account gets a new customer. More deletions than this are not expected.
DELETIONS_MAX = 20

_REQUESTS = tables.stripe_requests
_CUSTOMERS = tables.stripe_customers


async def purpose(conn: AsyncConnection, account_id: str) -> str:
    """Return the purpose of the intent that creates the account's next customer.

    The purpose is new after each deletion, so that each intent creates a single customer.
    """
    found = "customer"
    for _ in range(DELETIONS_MAX):
        query = (
            sa.select(_CUSTOMERS.c.customer_id)
            .join(_REQUESTS, _CUSTOMERS.c.customer_id == _REQUESTS.c.result["id"].astext)
            .where(_REQUESTS.c.account_id == account_id, _REQUESTS.c.purpose == found)
            .where(_CUSTOMERS.c.account_id == account_id, _CUSTOMERS.c.deleted_at.is_not(None))
        )
        deleted = (await conn.execute(query)).scalar_one_or_none()
        if deleted is None:
            break
        found = f"customer:{deleted}"
    return found


async def link(
    conn: AsyncConnection, account_id: str, customer_id: str, origin: audit_store.Origin, now: datetime
) -> str:
    """Store the account's customer, with an audit row. Returns the account's customer: the first that was stored."""
    await accounts_store.insert_missing(conn, {account_id}, now)
    if not await link_customer(conn, account_id, customer_id, now):
        return await accounts_store.customer_of(conn, account_id) or customer_id
    changes = {"customer": customer_id}
    await audit_store.append(conn, origin, account_id, "customer.linked", changes, now)
    return customer_id


async def account_of_customer(conn: AsyncConnection, customer_id: str) -> str | None:
    """Return the account that a customer at Stripe belongs to; None if the customer is not ours."""
    query = sa.select(_CUSTOMERS.c.account_id).where(_CUSTOMERS.c.customer_id == customer_id)
    return (await conn.execute(query)).scalar_one_or_none()


async def had_customer(conn: AsyncConnection, account_id: str) -> bool:
    """Say whether an account has a customer at Stripe, or had one that was deleted there."""
    query = sa.select(_CUSTOMERS.c.customer_id).where(_CUSTOMERS.c.account_id == account_id).limit(1)
    return (await conn.execute(query)).first() is not None


async def link_customer(conn: AsyncConnection, account_id: str, customer_id: str, now: datetime) -> bool:
    """Store the account's customer, in both directions; returns whether the account had no customer before.

    The account keeps its first customer. A second customer is mapped to the account too, because its events are ours.
    """
    await conn.execute(
        postgresql.insert(_CUSTOMERS)
        .values(customer_id=customer_id, account_id=account_id, linked_at=now)
        .on_conflict_do_nothing()
    )
    return await accounts_store.set_customer(conn, account_id, customer_id)


async def mark_deleted(conn: AsyncConnection, customer_id: str, now: datetime) -> bool:
    """Note that a customer was deleted at Stripe; returns whether that is new. Whose it was stays known."""
    deleted = await conn.execute(
        sa.update(_CUSTOMERS)
        .where(_CUSTOMERS.c.customer_id == customer_id, _CUSTOMERS.c.deleted_at.is_(None))
        .values(deleted_at=now)
    )
    return deleted.rowcount == 1
