"""Writes an invoice's row from Stripe's invoice. The customer must be known here; the subscription need not be."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import store as customers_store
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.findings import store as findings_store
from billing_svc.stripe import prices, subscription_records
from billing_svc.subscriptions.invoices import rules, store, stuck_drafts
from billing_svc.subscriptions.records import apply_subscription


async def apply(conn: AsyncConnection, fetched: rules.StripeInvoice, origin: audit_store.Origin, now: datetime) -> str:
    """Write a fetched invoice and its audit entry; returns the account. Raises NotOurs.

    An invoice of another product's subscription is not ours. If an earlier release stored it, it is deleted.
    """
    account_id = await owner(conn, fetched.customer_id)
    if not await _is_ours(conn, account_id, fetched):
        if not await store.delete(conn, account_id, fetched.invoice_id):
            raise apply_subscription.NotOurs(f"invoice {fetched.invoice_id} charges nothing of a catalog of ours")
        removed = {"invoice": fetched.invoice_id}
        await audit_store.append(conn, origin, account_id, "invoice.removed", removed, now)
        return account_id
    await accounts_store.insert_missing(conn, {account_id}, now)
    sold = await prices.sold_prices(conn, {line.price_id for line in fetched.lines if line.price_id})
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
    await stuck_drafts.note(conn, account_id, fetched, now)
    return account_id


async def _is_ours(conn: AsyncConnection, account_id: str, fetched: rules.StripeInvoice) -> bool:
    """Say whether an invoice is of no subscription, of one that we know, or charges a price or product of ours.

    The subscription may not be known yet: its event may come after that of its first invoice. An invoice whose lines
    name no price may be ours, and is kept.
    """
    if fetched.subscription_id is None:
        return True
    if await subscription_records.find(conn, account_id, fetched.subscription_id) is not None:
        return True
    price_ids = {line.price_id for line in fetched.lines if line.price_id}
    if not price_ids or await prices.sold_prices(conn, price_ids):
        return True
    return await prices.is_product_of_ours(conn, {line.product_id for line in fetched.lines if line.product_id})


async def remove(
    conn: AsyncConnection, invoice_id: str, customer_id: str, origin: audit_store.Origin, now: datetime
) -> str:
    """Delete the row of an invoice that Stripe has deleted; returns the account. Raises NotOurs."""
    account_id = await owner(conn, customer_id)
    await findings_store.settle(conn, account_id, findings_store.Kind.DRAFT_STUCK, invoice_id, now)
    if await store.delete(conn, account_id, invoice_id):
        await audit_store.append(conn, origin, account_id, "invoice.removed", {"invoice": invoice_id}, now)
    return account_id


async def owner(conn: AsyncConnection, customer_id: str) -> str:
    """Return the account of a customer. Raises NotOurs."""
    account_id = await customers_store.account_of_customer(conn, customer_id)
    if account_id is None:
        raise apply_subscription.NotOurs(f"customer {customer_id} is not ours")
    return account_id
