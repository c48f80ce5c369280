"""Subscriptions, and the checkout pages that became one."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.inbox import handle_checkouts, handling, rules
from billing_svc.stripe import client
from billing_svc.subscriptions.records import applying, refreshing
from billing_svc.subscriptions.records import rules as subscriptions_rules


class Subscriptions:
    """Fetches a subscription and applies it."""

    def __init__(self, catalogs: versions.CatalogCache, stripe: client.Stripe) -> None:
        self._catalogs = catalogs
        self._stripe = stripe

    async def prepare(self, events: Sequence[rules.Event]) -> handling.Apply:
        """See Handler."""
        fetched = await self._fetch(events)
        origin = handling.origin(events)

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            # First, because it locks the account, as opening a checkout does before it looks at the page.
            account_id = await applying.apply(conn, self._catalogs, fetched, origin, now)
            for event in events:
                if event.is_about_checkout:
                    await handle_checkouts.close_page(conn, event, now)
            return account_id

        return apply

    async def _fetch(self, events: Sequence[rules.Event]) -> subscriptions_rules.StripeSubscription:
        subscription_id = next((event.subscription_id for event in events if event.subscription_id), None)
        if subscription_id is None:
            raise applying.CannotApply("names no subscription")
        try:
            return await refreshing.fetch(self._stripe, subscription_id)
        except client.NotAtStripe:
            # Gone for good: its last word is in the event itself.
            last = next((event for event in reversed(events) if event.tells_of_deletion), None)
            if last is None:
                raise applying.CannotApply(f"Stripe has no subscription {subscription_id}") from None
            return refreshing.read(last.object)
