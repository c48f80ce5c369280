"""Compares customers with Stripe: a linked customer that was deleted there differs, and the repair unlinks it."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables, transactions
from billing_svc.reconciliation import discrepancies
from billing_svc.stripe import client
from billing_svc.subscriptions.records import refresh_subscription
from billing_svc.subscriptions.refusals import gone_customers

KIND = "customer"


class CustomerReconciliation:
    """Finds linked customers that Stripe has deleted, and unlinks them."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._stripe = stripe
        refresher = refresh_subscription.Refresher(database, catalogs, stripe, now)
        self._gone_customers = gone_customers.GoneCustomers(database, stripe, refresher, now)

    async def compare(self, account_id: str | None) -> list[discrepancies.ObjectDiscrepancy]:
        """Return the deleted customers of an account, or of all. Raises StripeAccountMismatch and StripeUnavailable."""
        linked = await self._database.read(lambda conn: _linked(conn, account_id))
        if account_id is None and linked:
            # A list has a hundred customers a request, and only those that are not deleted.
            there = set(await self._stripe.customer_ids())
            linked = [(owner, customer_id) for owner, customer_id in linked if customer_id not in there]
        return [
            discrepancies.ObjectDiscrepancy(KIND, owner, customer_id, "was deleted at Stripe and is linked here")
            for owner, customer_id in linked
            if await self._gone_customers.is_deleted(customer_id)
        ]

    async def fix(self, differences: Sequence[discrepancies.ObjectDiscrepancy], origin: audit_store.Origin) -> None:
        """Unlink the deleted customers, which also ends what they had."""
        for difference in differences:
            await self._gone_customers.unlink_if_deleted(difference.object_id, origin)


async def _linked(conn: AsyncConnection, account_id: str | None) -> list[tuple[str, str]]:
    """Return (account, customer) of the accounts that have a customer, or of one."""
    account = tables.accounts.c
    query = sa.select(account.account_id, account.customer_id).where(account.customer_id.is_not(None))
    if account_id is not None:
        query = query.where(account.account_id == account_id)
    return [(row.account_id, row.customer_id) for row in await conn.execute(query.order_by(account.account_id))]
