"""What Stripe's meters could not take: told afterwards, in thin events that are fetched one by one."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import handling, rules
from billing_svc.stripe import client
from billing_svc.subscriptions.records import applying
from billing_svc.usage_export import meter_errors


class MeterErrors:
    """Hands an error report to those who sent the usage."""

    def __init__(self, stripe: client.Stripe) -> None:
        self._stripe = stripe

    async def prepare(self, events: Sequence[rules.Event]) -> handling.Apply:
        """See Handler."""
        # A thin event is its own object, so there is one.
        event_id = events[0].event_id
        try:
            report = meter_errors.from_stripe(await self._stripe.thin_event(event_id))
        except client.NotAtStripe:
            raise applying.CannotApply(f"Stripe has no event {event_id} any more") from None
        except ValueError as error:
            raise applying.CannotApply(str(error)) from error

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            accounts = await meter_errors.apply(conn, report, handling.origin(events), now)
            # A report may be about several.
            return accounts[0] if len(accounts) == 1 else ""

        return apply
