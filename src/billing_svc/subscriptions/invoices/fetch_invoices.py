"""Reads an invoice with all of its lines, which Stripe returns in pages."""

from dataclasses import replace

from billing_svc.stripe import client
from billing_svc.subscriptions.invoices import rules

# Far more than a subscription has; reading them takes at most five requests beside the request for the invoice.
LINES_MAX = 500


async def complete(stripe: client.Stripe, data: client.Data) -> rules.StripeInvoice:
    """Return a fetched invoice with its remaining lines, which it fetches. Raises StripeObjectUnreadable."""
    invoice = rules.from_stripe(data)
    lines, more = list(invoice.lines), invoice.has_more_lines
    while more and len(lines) < LINES_MAX and lines and lines[-1].line_id:
        page = await stripe.invoice_lines(invoice.invoice_id, lines[-1].line_id)
        found, more = rules.lines_from_stripe(page, invoice.created_at, f"invoice {invoice.invoice_id}")
        lines += found
    return replace(invoice, lines=tuple(lines[:LINES_MAX]), has_more_lines=more or len(lines) > LINES_MAX)
