"""Bringing an invoice's row to what Stripe has. It needs its customer, and nothing of its subscription."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.subscriptions.invoices import rules, store
from billing_svc.subscriptions.records import applying as subscriptions_applying
from billing_svc.subscriptions.records import store as subscriptions_store


async def apply(conn: AsyncConnection, fetched: rules.StripeInvoice, origin: audit_store.Origin, now: datetime) -> str:
    """Write a fetched invoice and its audit row; returns the account. Raises NotOurs."""
    account_id = await owner(conn, fetched.customer_id)
    await accounts_store.insert_missing(conn, {account_id}, now)
    prices = {line.price_id for line in fetched.lines if line.price_id}
    sold = await subscriptions_store.sold_prices(conn, prices)
    meters = {price_id: price.meter for price_id, price in sold.items()}
    if await store.save(conn, account_id, fetched, meters, now):
        changes = {
            "invoice": fetched.invoice_id,
            "status": fetched.status,
            "total": fetched.total,
            "amount_paid": fetched.amount_paid,
            "currency": fetched.currency,
            "attempts": fetched.attempt_count,
        }
        await audit_store.append(conn, origin, account_id, "invoice.applied", changes, now)
    return account_id


async def remove(
    conn: AsyncConnection, invoice_id: str, customer_id: str, origin: audit_store.Origin, now: datetime
) -> str:
    """Take away the row of an invoice that Stripe has no more; returns the account. Raises NotOurs."""
    account_id = await owner(conn, customer_id)
    if await store.delete(conn, account_id, invoice_id):
        await audit_store.append(conn, origin, account_id, "invoice.removed", {"invoice": invoice_id}, now)
    return account_id


async def owner(conn: AsyncConnection, customer_id: str) -> str:
    """Return the account of a customer. Raises NotOurs."""
    account_id = await subscriptions_store.account_of_customer(conn, customer_id)
    if account_id is None:
        raise subscriptions_applying.NotOurs(f"customer {customer_id} is not ours")
    return account_id
