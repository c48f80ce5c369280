"""Invoices: of whatever happened to one, what it is now is kept."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import handling, rules
from billing_svc.stripe import client
from billing_svc.subscriptions.invoices import applying, fetching
from billing_svc.subscriptions.records import applying as subscriptions_applying


class Invoices:
    """Fetches an invoice with its lines and applies it; one that is gone goes here as well."""

    def __init__(self, stripe: client.Stripe) -> None:
        self._stripe = stripe

    async def prepare(self, events: Sequence[rules.Event]) -> handling.Apply:
        """See Handler."""
        invoice_id, origin = events[0].object_id, handling.origin(events)
        try:
            fetched = await fetching.complete(self._stripe, await self._stripe.invoice(invoice_id))
        except client.NotAtStripe:
            customer_id = next((one.customer_id for one in events if one.tells_of_deletion and one.customer_id), None)
            if customer_id is None:
                raise subscriptions_applying.CannotApply(f"Stripe has no invoice {invoice_id}") from None
            return lambda conn, now: applying.remove(conn, invoice_id, customer_id, origin, now)
        except ValueError as error:
            raise subscriptions_applying.CannotApply(str(error)) from error

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            return await applying.apply(conn, fetched, origin, now)

        return apply
