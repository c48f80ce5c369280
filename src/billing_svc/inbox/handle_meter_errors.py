"""Events about usage that Stripe's meters rejected. They are thin events: each error report must be fetched."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import handler, rules
from billing_svc.stripe import client
from billing_svc.subscriptions.records import apply_subscription
from billing_svc.usage_export import meter_errors


class MeterErrorHandler:
    """Passes an error report to `usage_export`, which sent the usage."""

    def __init__(self, stripe: client.Stripe) -> None:
        self._stripe = stripe

    async def prepare(self, events: Sequence[rules.Event]) -> handler.Apply:
        """See Handler."""
        # A thin event is its own object, so `events` has a single element.
        event_id = events[0].event_id
        try:
            report = meter_errors.from_stripe(await self._stripe.thin_event(event_id))
        except client.NotAtStripe:
            raise apply_subscription.CannotApply(f"Stripe has no event {event_id} any more") from None

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            accounts = await meter_errors.apply(conn, report, handler.origin(events), now)
            # A report may concern several accounts.
            return accounts[0] if len(accounts) == 1 else ""

        return apply
