"""Events of refunds and disputes: after every event, what was paid back of the payment's invoice is stored."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import handler, rules
from billing_svc.stripe import client
from billing_svc.subscriptions.invoices import apply_invoice, fetch_invoices, fetch_repayments
from billing_svc.subscriptions.records import apply_subscription


class PaymentHandler:
    """Fetches the charges and disputes of a payment intent, and the invoices that it pays."""

    def __init__(self, stripe: client.Stripe) -> None:
        self._stripe = stripe

    async def prepare(self, events: Sequence[rules.Event]) -> handler.Apply:
        """See Handler."""
        payment_intent, origin = events[0].payment_intent, handler.origin(events)
        repaid = [] if payment_intent is None else await fetch_repayments.of_payment(self._stripe, payment_intent)
        if not repaid:
            raise apply_subscription.NotOurs(f"{events[0].object_id} is not the payment of an invoice")
        invoices = [
            await fetch_invoices.complete(self._stripe, await self._stripe.invoice(one.invoice_id)) for one in repaid
        ]

        async def apply(conn: AsyncConnection, now: datetime) -> str:
            account_id = ""
            for one, invoice in zip(repaid, invoices, strict=True):
                account_id = await apply_invoice.apply_repaid(conn, one, invoice, origin, now)
            return account_id

        return apply
