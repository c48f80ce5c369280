"""Fetches what the invoices of a subscription charge, line by line, as `charged_units.py` compares it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from billing_svc.stripe import client, invoice_charges, parse
from billing_svc.stripe.invoice_charges import ChargeState
from billing_svc.usage_export.charged_units import Line


async def of_subscription(
    stripe: client.Stripe, subscription_id: str, customer_id: str, since: datetime, *, is_over: bool
) -> dict[str, list[Line]]:
    """Return the lines of each price, from invoices and pending items that were created at `since` or later.

    Raises StripeUnavailable and StripeObjectUnreadable.
    """
    found: dict[str, list[Line]] = {}
    for invoice in await stripe.invoices_of_subscription(subscription_id, since):
        deciding = await _deciding(stripe, invoice)
        state = invoice_charges.state_of(deciding)
        for line in await stripe.all_invoice_lines(deciding):
            _append(found, line, state)
    # A change may leave its usage to the next invoice. After the subscription's end, no invoice takes it by itself.
    pending = ChargeState.WAITING if is_over else ChargeState.CHARGED
    for item in await stripe.invoice_items_of(customer_id, since):
        if not item.get("invoice") and _subscription_of(item) in {None, subscription_id}:
            _append(found, item, pending)
    return found


async def _deciding(stripe: client.Stripe, invoice: client.Data) -> client.Data:
    """Return the latest revision of an invoice, which is itself if it was not revised."""
    for _ in range(invoice_charges.REVISIONS_MAX):
        revision = invoice_charges.revision_of(invoice)
        if revision is None:
            break
        invoice = await stripe.invoice(revision)
    return invoice


def _subscription_of(item: Mapping[str, Any]) -> str | None:
    named = parse.nested(item, "parent", "subscription_details", "subscription") or item.get("subscription")
    return parse.optional_id(named)


def _append(found: dict[str, list[Line]], line: Mapping[str, Any], state: ChargeState) -> None:
    price_id = parse.price_of_line(line)
    if price_id is None:
        return
    fields = parse.StripeFields.of(line, "invoice line")
    period = fields.part("period")
    units = fields.whole("quantity", otherwise=0)
    found.setdefault(price_id, []).append(Line(period.instant("start"), period.instant("end"), units, state))
