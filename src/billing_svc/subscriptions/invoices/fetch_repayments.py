"""Reads what was paid back of an invoice's payments. The invoice does not show refunds and disputes; its charges do."""

from dataclasses import dataclass
from typing import Any

from billing_svc.stripe import client, parse


@dataclass(frozen=True, slots=True)
class Repaid:
    """What was refunded of an invoice's payments, in minor units, and the status of the latest dispute about them."""

    invoice_id: str
    amount_refunded: int
    dispute_status: str | None


async def of_payment(stripe: client.Stripe, payment_intent: str) -> list[Repaid]:
    """Return what was paid back of the invoices that a payment intent pays: usually of one, or of none.

    Raises StripeUnavailable, StripeObjectUnreadable and NotAtStripe.
    """
    payments = await stripe.invoice_payments(payment_intent=payment_intent)
    invoice_ids = [parse.StripeFields.of(one, "invoice payment").id("invoice") for one in payments]
    return [await of_invoice(stripe, invoice_id) for invoice_id in dict.fromkeys(invoice_ids)]


async def of_invoice(stripe: client.Stripe, invoice_id: str) -> Repaid:
    """Return what was paid back of an invoice. Raises as `of_payment` does."""
    refunded, disputes = 0, list[client.Data]()
    for payment in await stripe.invoice_payments(invoice=invoice_id):
        intent = payment_intent_of(parse.nested(payment, "payment"))
        if intent is None:
            continue  # paid outside of Stripe, or by a charge of an old version
        for charge in await stripe.charges(payment_intent=intent):
            fields = parse.StripeFields.of(charge, "charge")
            refunded += max(0, fields.whole("amount_refunded", otherwise=0))
            if fields.get("disputed") is True and not disputes:
                disputes += await stripe.disputes(intent)
    latest = max(disputes, key=_created, default=None)
    return Repaid(
        invoice_id, refunded, None if latest is None else parse.StripeFields.of(latest, "dispute").text("status")
    )


def payment_intent_of(data: object) -> str | None:
    """Return the payment intent that an object names; None if it names none."""
    return parse.optional_id(parse.nested(data, "payment_intent"))


def is_paid_back(charge: object) -> bool:
    """Say whether a charge was refunded or disputed."""
    refunded: Any = parse.nested(charge, "amount_refunded")
    return parse.nested(charge, "disputed") is True or (isinstance(refunded, int) and refunded > 0)


def _created(dispute: client.Data) -> int:
    return parse.StripeFields.of(dispute, "dispute").whole("created", otherwise=0)
