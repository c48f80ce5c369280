"""Customers: of one only its link to an account is kept here, so only a deletion changes anything."""

from collections.abc import Sequence
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import store as customers_store
from billing_svc.customers import unlink_customer
from billing_svc.inbox import handler, rules
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, subscription_records
from billing_svc.subscriptions.checkouts import store as checkouts_store
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription

_log = structlog.get_logger(__name__)


class CustomerHandler:
    """Parts an account from a customer that was deleted. That is final, so there is nothing to fetch of it."""

    def __init__(self, database: transactions.Transactions, refresher: refresh_subscription.Refresher) -> None:
        self._database = database
        self._refresher = refresher

    async def prepare(self, events: Sequence[rules.Event]) -> handler.Apply:
        """See Handler."""
        customer_id = events[0].object_id
        is_deleted = any(event.tells_of_deletion for event in events)
        if is_deleted:
            await self._end_subscriptions(customer_id, events)
        origin = handler.origin(events)

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            account_id = await customers_store.account_of_customer(conn, customer_id)
            if account_id is None:
                raise apply_subscription.NotOurs(f"customer {customer_id} is not ours")
            # Nobody can pay on a page of a customer that is gone.
            if is_deleted and await unlink_customer.unlink(conn, account_id, customer_id, origin, now):
                await checkouts_store.expire_open(conn, account_id, now)
            return account_id

        return apply

    async def _end_subscriptions(self, customer_id: str, events: Sequence[rules.Event]) -> None:
        """Bring its subscriptions up to date: Stripe has ended them with it."""
        for subscription_id in await self._database.read(lambda conn: _living(conn, customer_id)):
            try:
                await self._refresher.refresh(subscription_id, handler.origin(events))
            except (client.NotAtStripe, apply_subscription.CannotApply, apply_subscription.NotOurs) as error:
                # Its own event ends it, or says what is wrong with it.
                _log.warning("subscription_left", subscription=subscription_id, error=str(error))


async def _living(conn: AsyncConnection, customer_id: str) -> list[str]:
    """Return the subscriptions of a customer that are not over; none if it is not ours."""
    account_id = await customers_store.account_of_customer(conn, customer_id)
    if account_id is None:
        return []
    return await subscription_records.living_of_customer(conn, account_id, customer_id)
