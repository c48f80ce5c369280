"""Events of customers. Only a customer's link to its account is stored here, so only a deletion has an effect."""

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
    """Unlinks an account from a deleted customer. A deletion is final, so the customer is not fetched."""

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
            # A checkout page of a deleted customer cannot be paid.
            if is_deleted and await unlink_customer.unlink(conn, account_id, customer_id, origin, now):
                await checkouts_store.expire_open(conn, account_id, now)
            return account_id

        return apply

    async def _end_subscriptions(self, customer_id: str, events: Sequence[rules.Event]) -> None:
        """Refresh the customer's subscriptions: Stripe ended them when the customer was deleted."""
        for subscription_id in await self._database.read(lambda conn: _living(conn, customer_id)):
            try:
                await self._refresher.refresh(subscription_id, handler.origin(events))
            except (client.NotAtStripe, apply_subscription.CannotApply, apply_subscription.NotOurs) as error:
                # The subscription's own event will end it, or fail and be reported.
                _log.warning("subscription_left", subscription=subscription_id, error=str(error))


async def _living(conn: AsyncConnection, customer_id: str) -> list[str]:
    """Return the subscriptions of a customer that are not over; none if it is not ours."""
    account_id = await customers_store.account_of_customer(conn, customer_id)
    if account_id is None:
        return []
    return await subscription_records.living_of_customer(conn, account_id, customer_id)
