"""Unlinks customers that were deleted at Stripe, also if the event of the deletion never arrives.

A refusal alone proves nothing: with the key of another Stripe account, every object is missing. Stripe keeps the id of
a deleted customer and answers `deleted: true`. A customer counts as deleted if Stripe answers that, or if Stripe lacks
the customer but has a price of ours.
"""

from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import store as customers_store
from billing_svc.customers import unlink_customer
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, same_account, subscription_records
from billing_svc.subscriptions.checkouts import store as checkouts_store
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription

_log = structlog.get_logger(__name__)


class GoneCustomers:
    """Ends what a deleted customer had, and unlinks it from its account."""

    def __init__(
        self,
        database: transactions.Transactions,
        stripe: client.Stripe,
        refresher: refresh_subscription.Refresher,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._stripe = stripe
        self._refresher = refresher
        self._clock = now

    async def unlink_if_deleted(self, customer_id: str, origin: audit_store.Origin) -> bool:
        """Unlink a customer that Stripe says is deleted; returns whether it is.

        Its subscriptions are ended as Stripe has them. Raises StripeAccountMismatch if the key belongs to another
        Stripe account, StripeUnavailable and LostRace.
        """
        account_id = await self._database.read(lambda conn: customers_store.account_of_customer(conn, customer_id))
        if account_id is None or not await self.is_deleted(customer_id):
            return False
        await self.end_subscriptions(customer_id, origin)
        now = self._clock.now()
        await self._database.run(lambda conn: unlink(conn, account_id, customer_id, origin, now))
        return True

    async def end_subscriptions(self, customer_id: str, origin: audit_store.Origin) -> None:
        """Refresh the customer's subscriptions: Stripe ended them when the customer was deleted."""
        for subscription_id in await self._database.read(lambda conn: _living(conn, customer_id)):
            try:
                await self._refresher.refresh(subscription_id, origin)
            except (client.NotAtStripe, apply_subscription.CannotApply, apply_subscription.NotOurs) as error:
                # The subscription's own event will end it, or fail and be reported.
                _log.warning("subscription_left", subscription=subscription_id, error=str(error))

    async def is_deleted(self, customer_id: str) -> bool:
        """Say whether a customer was deleted at Stripe. Raises StripeAccountMismatch and StripeUnavailable."""
        try:
            return (await self._stripe.customer(customer_id)).get("deleted") is True
        except client.NotAtStripe:
            await same_account.require(self._database, self._stripe, customer_id)
            return True


async def unlink(
    conn: AsyncConnection, account_id: str, customer_id: str, origin: audit_store.Origin, now: datetime
) -> None:
    """Unlink a deleted customer from its account. A checkout page of the customer cannot be paid any more."""
    if await unlink_customer.unlink(conn, account_id, customer_id, origin, now):
        await checkouts_store.expire_open(conn, account_id, now)


async def _living(conn: AsyncConnection, customer_id: str) -> list[str]:
    """Return the subscriptions of a customer that are not over; none if it is not ours."""
    account_id = await customers_store.account_of_customer(conn, customer_id)
    if account_id is None:
        return []
    return await subscription_records.living_of_customer(conn, account_id, customer_id)
