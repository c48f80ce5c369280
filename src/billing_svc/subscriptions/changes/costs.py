"""The cost of a change, and its stored form, which repeats of the request get."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from billing_svc.stripe import parse
from billing_svc.subscriptions.invoices import rules as invoices_rules


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """A line of the cost; the amount is in minor units."""

    description: str
    amount: int
    quantity: int
    meter: str
    period_start: datetime
    period_end: datetime
    is_proration: bool


@dataclass(frozen=True, slots=True)
class InvoiceTotals:
    """The totals of an invoice, as Stripe computes them, in minor units; the customer's balance pays `credit`."""

    subtotal: int
    discount: int
    tax: int
    total: int
    credit: int
    amount_due: int


@dataclass(frozen=True, slots=True)
class ChangeOutcome:
    """The cost of a change, and when the change takes effect."""

    effective_at: datetime
    proration_at: datetime | None
    currency: str
    lines: tuple[ChangeLine, ...]
    # None for a change that an older release began.
    totals: InvoiceTotals | None = None

    @property
    def total(self) -> int:
        """Return the total of the invoice."""
        return sum(line.amount for line in self.lines) if self.totals is None else self.totals.total


def totals(invoice: parse.StripeFields) -> InvoiceTotals:
    """Return the totals of a previewed invoice; a part that Stripe left out is 0. Raises StripeObjectUnreadable."""
    total = invoice.whole("total")
    due = invoice.whole("amount_due", otherwise=max(0, total))
    return InvoiceTotals(
        subtotal=invoice.whole("subtotal", otherwise=total),
        discount=_sum(invoice, "total_discount_amounts"),
        # Older API versions have only the sum.
        tax=invoice.whole("tax", otherwise=0) if invoice.get("total_taxes") is None else _sum(invoice, "total_taxes"),
        total=total,
        credit=max(0, total) - due,
        amount_due=due,
    )


def _sum(invoice: parse.StripeFields, name: str) -> int:
    return 0 if invoice.get(name) is None else sum(part.whole("amount") for part in invoice.each(name))


def kept(
    effective_at: datetime,
    proration_at: int | None,
    currency: str,
    lines: Sequence[invoices_rules.InvoiceLine],
    meters: Mapping[str, str],
    invoiced: InvoiceTotals | None,
) -> Mapping[str, Any]:
    """Return the cost in its stored form; `meters` has the meter of each metered price."""
    return {
        "effective_at": effective_at.isoformat(),
        "proration_at": proration_at,
        "currency": currency,
        "totals": None if invoiced is None else asdict(invoiced),
        "lines": [
            {
                "description": line.description,
                "amount": line.amount,
                "quantity": line.quantity,
                "meter": meters.get(line.price_id, ""),
                "period_start": line.period_start.isoformat(),
                "period_end": line.period_end.isoformat(),
                "is_proration": line.is_proration,
            }
            for line in lines
        ],
    }


def from_kept(answer: Mapping[str, Any]) -> ChangeOutcome:
    """Parse the stored form."""
    at = answer["proration_at"]
    return ChangeOutcome(
        effective_at=datetime.fromisoformat(answer["effective_at"]),
        proration_at=None if at is None else datetime.fromtimestamp(at, UTC),
        currency=answer["currency"],
        totals=InvoiceTotals(**answer["totals"]) if answer.get("totals") else None,
        lines=tuple(
            ChangeLine(
                **{
                    **line,
                    "period_start": datetime.fromisoformat(line["period_start"]),
                    "period_end": datetime.fromisoformat(line["period_end"]),
                }
            )
            for line in answer["lines"]
        ),
    )
