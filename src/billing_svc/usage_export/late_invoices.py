"""Our own invoices of late usage: those of items that no subscription's invoice will take.

The steps: (1) a draft is created that takes nothing by itself, and names who pays; (2) each item is put on it by its
id, so what others left pending on the customer stays there; (3) the draft is released, and Stripe finalises and
charges it like any other invoice. Each step is a stored intent. A draft that is not released yet can wait for any time.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import payment_methods
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, intents, parse, subscription_records
from billing_svc.usage_export import rules

# The most that our clock and Stripe's clock may differ.
CLOCKS_APART_MAX = timedelta(minutes=10)


class LateInvoices:
    """Invoices the items of late usage reports; the caller holds the account's lease."""

    def __init__(self, database: transactions.Transactions, stripe: client.Stripe, requests: intents.Requests) -> None:
        self._database = database
        self._stripe = stripe
        self._requests = requests

    async def invoice(self, first: rules.UsageReport, reports: Sequence[rules.UsageReport]) -> list[rules.UsageReport]:
        """Put the items of one customer's reports, `first` among them, on an invoice; return the reports invoiced.

        Those in the currency of the first are invoiced. An item that is on an invoice already, because an earlier
        attempt or somebody else put it there, stays there. Raises StripeUnavailable, StripeRefused and NotAtStripe.
        """
        items = {report.report_id: await self._stripe.invoice_item(str(report.invoice_item_id)) for report in reports}
        currency = items[first.report_id]["currency"]
        alike = [report for report in reports if items[report.report_id]["currency"] == currency]
        draft_id: str | None = None
        invoice_ids: set[str] = set()
        for report in alike:
            on_invoice = items[report.report_id].get("invoice")
            if not on_invoice:
                # Not by `first`: its own draft may be final already, if only the note of that was lost.
                draft_id = draft_id or await self._draft(report, currency)
                await self._add(report, draft_id)
            invoice_ids.add(str(on_invoice or draft_id))
        for invoice_id in sorted(invoice_ids):
            await self._release(first.account_id, invoice_id)
        return alike

    async def _draft(self, first: rules.UsageReport, currency: str) -> str:
        purpose = f"usage-invoice:{first.report_id}"
        params = {
            "customer": first.customer_id,
            "currency": currency,
            "auto_advance": False,
            "collection_method": "charge_automatically",
            "pending_invoice_items_behavior": "exclude",
            "description": "Usage reported late",
            "metadata": {"account_id": first.account_id, "usage_report": first.report_id},
            **await self._payer(first),
        }

        async def look_up(since: datetime) -> client.Data | None:
            made = await self._stripe.every_invoice(first.customer_id, since - CLOCKS_APART_MAX)
            return of_report(made, first)

        intent = intents.Intent(first.account_id, purpose, "invoices.create", params)
        return str((await self._requests.perform(intent, look_up))["id"])

    async def _payer(self, report: rules.UsageReport) -> dict[str, str]:
        """Return the parameter that names what pays; empty without a payment method: the invoice's page remains."""

        async def read(conn: AsyncConnection) -> str | None:
            held = await subscription_records.of_account(conn, report.account_id)
            return next((row.subscription_id for row in held if row.customer_id == report.customer_id), None)

        subscription_id = report.subscription_id or await self._database.read(read)
        return await payment_methods.payer(self._stripe, report.customer_id, subscription_id) or {}

    async def _add(self, report: rules.UsageReport, draft_id: str) -> None:
        async def look_up(_since: datetime) -> client.Data | None:
            item = await self._stripe.invoice_item(str(report.invoice_item_id))
            return {"id": draft_id} if item.get("invoice") == draft_id else None

        params = {"invoice": draft_id, "lines": [{"invoice_item": report.invoice_item_id}]}
        purpose = f"usage-invoice-line:{report.report_id}:{draft_id}"
        await self._requests.perform(intents.Intent(report.account_id, purpose, "invoices.add_lines", params), look_up)

    async def _release(self, account_id: str, invoice_id: str) -> None:
        """Let Stripe finalise and charge the invoice, if it is our draft; another invoice is left alone."""
        invoice = await self._stripe.invoice(invoice_id)
        ours = bool(parse.nested(invoice, "metadata", "usage_report"))
        if not ours or invoice["status"] != "draft" or invoice.get("auto_advance"):
            return

        async def look_up(_since: datetime) -> client.Data | None:
            return None  # a repeat has no second effect

        params = {"invoice": invoice_id, "auto_advance": True}
        intent = intents.Intent(account_id, f"usage-invoice-release:{invoice_id}", "invoices.update", params)
        await self._requests.perform(intent, look_up)


def of_report(objects: Sequence[client.Data], report: rules.UsageReport) -> client.Data | None:
    """Return the object whose metadata names a usage report; None if there is none."""
    return next((data for data in objects if parse.nested(data, "metadata", "usage_report") == report.report_id), None)
