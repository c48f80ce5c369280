"""The way out for a subscription that is unpaid, incomplete or paused: what is owed, and where it is paid."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import money
from billing_svc.stripe import subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.invoices import store as invoices_store

_UNPAID = frozenset({"past_due", "unpaid", "incomplete"})
_STUCK = _UNPAID | {stripe_subscriptions.PAUSED}
_PAUSES: Mapping[str | None, str] = {
    "trial_end_without_payment_method": "its trial ended without a payment method: the customer enters one on the page "
    "of CreatePortalSession, and the subscription is then resumed at Stripe",
    "pause_requested": "it was paused on request, and is resumed at Stripe",
}


@dataclass(frozen=True, slots=True)
class WayOut:
    """A text that follows the reason of an error, and metadata for the calling program; both empty if all is paid."""

    text: str
    metadata: Mapping[str, str]


NONE = WayOut("", {})


async def read(conn: AsyncConnection, row: subscription_records.SubscriptionRecord) -> WayOut:
    """Return the way out for a stored subscription."""
    if row.status not in _STUCK:
        return NONE
    return of(row, await invoices_store.owed(conn, row.account_id, row.subscription_id))


def of(row: subscription_records.SubscriptionRecord, owed: invoices_store.OwedInvoices | None) -> WayOut:
    """Return the way out for a subscription in one of these states, and what is owed for it."""
    metadata = {"status": row.status}
    parts = []
    if row.status == stripe_subscriptions.PAUSED:
        parts.append(_PAUSES.get(row.pause_reason, "it is paused, and is resumed at Stripe"))
    if owed is not None:
        amount = money.major_units(owed.amount, owed.currency)
        metadata |= {"amount_due": f"{amount:f}", "currency": owed.currency, "invoice_id": owed.invoice_id}
        where = "on the page of CreatePortalSession"
        if owed.page_url is not None:
            metadata["invoice_url"] = owed.page_url
            where = f"at {owed.page_url}"
        parts.append(f"{amount:f} {owed.currency} is owed, and can be paid {where}")
    elif row.status in _UNPAID:
        parts.append("what is owed is shown on the page of CreatePortalSession, and can be paid there")
    if row.status == "incomplete":
        parts.append("a first payment that is under way needs nothing; unpaid, it expires a day after it began")
    return WayOut(f": {'; '.join(parts)}", metadata)
