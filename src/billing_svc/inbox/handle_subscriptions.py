"""Events of subscriptions, and of checkout pages that led to a subscription."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.inbox import handle_checkouts, handler, rules
from billing_svc.stripe import client
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription


class SubscriptionHandler:
    """Fetches a subscription and applies it."""

    def __init__(self, catalogs: versions.CatalogCache, stripe: client.Stripe) -> None:
        self._catalogs = catalogs
        self._stripe = stripe

    async def prepare(self, events: Sequence[rules.Event]) -> handler.Apply:
        """See Handler."""
        fetched = await self._fetch(events)
        origin = handler.origin(events)

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            # The subscription first: this locks the account. Opening a checkout locks the account before the page too.
            account_id = await apply_subscription.apply(conn, self._catalogs, fetched, origin, now)
            for event in events:
                if event.is_about_checkout:
                    await handle_checkouts.close_page(conn, event, now)
            return account_id

        return apply

    async def _fetch(self, events: Sequence[rules.Event]) -> stripe_subscriptions.StripeSubscription:
        subscription_id = next((event.subscription_id for event in events if event.subscription_id), None)
        if subscription_id is None:
            raise apply_subscription.CannotApply("the event names no subscription")
        try:
            return await refresh_subscription.fetch(self._stripe, subscription_id)
        except client.NotAtStripe:
            # The subscription was deleted at Stripe; the event of the deletion has its final state.
            last = next((event for event in reversed(events) if event.tells_of_deletion), None)
            if last is None:
                raise apply_subscription.CannotApply(f"Stripe has no subscription {subscription_id}") from None
            return refresh_subscription.read(last.object)
