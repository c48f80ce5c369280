"""The totals of the account's next invoice if it were made today, as Stripe computes them."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import transactions
from billing_svc.stripe import client, parse, subscription_records
from billing_svc.subscriptions.changes import costs


@dataclass(frozen=True, slots=True)
class NextInvoice:
    """The totals, in minor units of the currency."""

    currency: str
    totals: costs.InvoiceTotals


class NextInvoices:
    """Asks Stripe for next invoices."""

    def __init__(self, database: transactions.Transactions, stripe: client.Stripe) -> None:
        self._database = database
        self._stripe = stripe

    async def of_account(self, account_id: str) -> NextInvoice | None:
        """Return the next invoice of the account's subscription; None if Stripe will make none.

        Raises StripeUnavailable, StripeRefused and StripeObjectUnreadable.
        """
        subscription_id = await self._database.read(lambda conn: _living(conn, account_id))
        if subscription_id is None:
            return None
        try:
            invoice = await self._stripe.preview_invoice({"subscription": subscription_id})
        except client.NotAtStripe:
            return None
        fields = parse.StripeFields.of(invoice, "preview of an invoice")
        return NextInvoice(fields.text("currency"), costs.totals(fields))


async def _living(conn: AsyncConnection, account_id: str) -> str | None:
    """Return the subscription that is invoiced: the plan's, or pay-as-you-go's of the default plan."""
    rows = await subscription_records.of_account(conn, account_id)
    living = [row for row in rows if not row.is_over and not row.superfluous]
    return next((row.subscription_id for row in sorted(living, key=lambda row: not row.is_plan)), None)
