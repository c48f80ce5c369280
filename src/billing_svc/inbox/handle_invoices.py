"""Events of invoices: after every event, the invoice's current state is stored."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import handler, rules
from billing_svc.stripe import client
from billing_svc.subscriptions.invoices import apply_invoice, fetch_invoices
from billing_svc.subscriptions.records import apply_subscription


class InvoiceHandler:
    """Fetches an invoice with its lines and stores it; an invoice that was deleted at Stripe is deleted here too."""

    def __init__(self, stripe: client.Stripe) -> None:
        self._stripe = stripe

    async def prepare(self, events: Sequence[rules.Event]) -> handler.Apply:
        """See Handler."""
        invoice_id, origin = events[0].object_id, handler.origin(events)
        try:
            fetched = await fetch_invoices.complete(self._stripe, await self._stripe.invoice(invoice_id))
        except client.NotAtStripe:
            customer_id = next((one.customer_id for one in events if one.tells_of_deletion and one.customer_id), None)
            if customer_id is None:
                raise apply_subscription.CannotApply(f"Stripe has no invoice {invoice_id}") from None
            return lambda conn, now: apply_invoice.remove(conn, invoice_id, customer_id, origin, now)

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            return await apply_invoice.apply(conn, fetched, origin, now)

        return apply
