"""Customers: of one only its link to an account is kept here, so only a deletion changes anything."""

from collections.abc import Sequence
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import unlinking
from billing_svc.inbox import handling, rules
from billing_svc.platform.database import transactions
from billing_svc.stripe import client
from billing_svc.subscriptions.records import applying, refreshing, store

_log = structlog.get_logger(__name__)


class Customers:
    """Parts an account from a customer that was deleted. That is final, so there is nothing to fetch of it."""

    def __init__(self, database: transactions.Transactions, refresher: refreshing.Refresher) -> None:
        self._database = database
        self._refresher = refresher

    async def prepare(self, events: Sequence[rules.Event]) -> handling.Apply:
        """See Handler."""
        customer_id = events[0].object_id
        is_deleted = any(event.tells_of_deletion for event in events)
        if is_deleted:
            await self._end_subscriptions(customer_id, events)
        origin = handling.origin(events)

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            account_id = await store.account_of_customer(conn, customer_id)
            if account_id is None:
                raise applying.NotOurs(f"customer {customer_id} is not ours")
            if is_deleted:
                await unlinking.unlink(conn, account_id, customer_id, origin, now)
            return account_id

        return apply

    async def _end_subscriptions(self, customer_id: str, events: Sequence[rules.Event]) -> None:
        """Bring its subscriptions up to date: Stripe has ended them with it."""
        living = await self._database.read(lambda conn: store.living_of_customer(conn, customer_id))
        for subscription_id in living:
            try:
                await self._refresher.refresh(subscription_id, handling.origin(events))
            except (client.NotAtStripe, applying.CannotApply, applying.NotOurs) as error:
                # Its own event ends it, or says what is wrong with it.
                _log.warning("subscription_left", subscription=subscription_id, error=str(error))
