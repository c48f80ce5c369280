"""Drafts that charge nobody: only a person can finalise them, or their time has passed. Each is a finding."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.findings import store as findings_store
from billing_svc.stripe import subscription_records
from billing_svc.subscriptions.invoices import rules

# Stripe finalises a draft at most three days after its creation.
DRAFT_LASTS_MAX = timedelta(days=3)
# How much later than announced a draft may become final.
LATE_MAX = timedelta(hours=1)

_SETTLED_BY = (
    "remove the cause and finalise the invoice at Stripe, or delete it there; what a deleted invoice charged for usage"
    " is charged by `billing-svc reconcile --fix`"
)


def why_stuck(invoice: rules.StripeInvoice, *, is_paused: bool, now: datetime) -> str | None:
    """Return why a draft of a subscription, or of late usage, will not become final by itself; None if it will.

    `is_paused`: the subscription keeps its invoices as drafts on purpose.
    """
    if invoice.status != "draft" or invoice.total == 0 or (invoice.subscription_id is None and not invoice.is_of_usage):
        return None
    if invoice.finalization_error is not None:
        return f"Stripe could not finalise it: {invoice.finalization_error}"
    if not invoice.auto_advance:
        # A draft of late usage is released by the worker.
        return None if is_paused or invoice.is_of_usage else "Stripe does not finalise it by itself"
    final_at = invoice.finalizes_at or invoice.created_at + DRAFT_LASTS_MAX
    return f"it should be final since {final_at:%Y-%m-%d %H:%M}" if now > final_at + LATE_MAX else None


async def note(conn: AsyncConnection, account_id: str, invoice: rules.StripeInvoice, now: datetime) -> None:
    """Open or close the finding about an invoice that was just fetched."""
    row = None
    if invoice.subscription_id is not None:
        row = await subscription_records.find(conn, account_id, invoice.subscription_id)
    why = why_stuck(invoice, is_paused=row is not None and row.collection_pause == "keep_as_draft", now=now)
    if why is None:
        await findings_store.settle(conn, account_id, findings_store.Kind.DRAFT_STUCK, invoice.invoice_id, now)
        return
    detail = f"a draft that charges nobody: {why}"
    kind = findings_store.Kind.DRAFT_STUCK
    finding = findings_store.NewFinding(kind, invoice.invoice_id, detail, _SETTLED_BY, invoice.total, invoice.currency)
    await findings_store.report(conn, account_id, finding, now)
