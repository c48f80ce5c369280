"""The cost of a change, and its stored form, which repeats of the request get."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

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
class ChangeOutcome:
    """The cost of a change, and when the change takes effect."""

    effective_at: datetime
    proration_at: datetime | None
    currency: str
    lines: tuple[ChangeLine, ...]


def kept(
    effective_at: datetime,
    proration_at: int | None,
    currency: str,
    lines: Sequence[invoices_rules.InvoiceLine],
    meters: Mapping[str, str],
) -> Mapping[str, Any]:
    """Return the cost in its stored form; `meters` has the meter of each metered price."""
    return {
        "effective_at": effective_at.isoformat(),
        "proration_at": proration_at,
        "currency": currency,
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
