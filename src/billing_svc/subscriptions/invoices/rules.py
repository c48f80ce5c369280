"""What an invoice of Stripe's says, whichever API version wrote it. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing_svc.stripe import reading

# Stripe's own bound on the description of an invoice item, and room to spare.
DESCRIPTION_LENGTH_MAX = 1000
# An int64 of minor units, as the column has it.
AMOUNT_MAX = 2**63 - 1
# A status that an old API version left out.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `price_id` is empty where it is about no price."""

    line_id: str
    description: str
    amount: int
    quantity: int
    price_id: str
    period_start: datetime
    period_end: datetime
    is_proration: bool


@dataclass(frozen=True, slots=True)
class StripeInvoice:
    """An invoice as fetched, typed. Amounts are minor units of its currency."""

    invoice_id: str
    customer_id: str
    subscription_id: str | None
    number: str | None
    status: str
    currency: str
    total: int
    amount_due: int
    amount_paid: int
    attempt_count: int
    created_at: datetime
    due_at: datetime | None
    paid_at: datetime | None
    next_payment_attempt_at: datetime | None
    period_start: datetime
    period_end: datetime
    hosted_url: str | None
    pdf_url: str | None
    lines: tuple[Line, ...]
    # Stripe has more lines than these.
    has_more_lines: bool


def from_stripe(data: Mapping[str, Any]) -> StripeInvoice:
    """Read an invoice of any API version that is still about; raises ValueError on what is none.

    What a version leaves out, or has null in place of, is empty here; only what makes it an invoice is required: its
    id, customer, currency, total and time.
    """
    try:
        created_at = reading.instant(data.get("created") or data["date"])
        period_start = reading.optional_instant(data.get("period_start")) or created_at
        total = _amount(data["total"])
        lines, has_more_lines = lines_from_stripe(data.get("lines"), created_at)
        return StripeInvoice(
            invoice_id=reading.text(data["id"]),
            customer_id=reading.id_of(data["customer"]),
            subscription_id=_subscription_id(data),
            number=reading.optional_text(data.get("number")),
            status=reading.optional_text(data.get("status")) or UNKNOWN,
            currency=reading.text(data["currency"]).lower(),
            total=total,
            amount_due=_amount(_given(data.get("amount_due"), total)),
            amount_paid=_amount(_given(data.get("amount_paid"), 0)),
            attempt_count=min(max(0, _amount(_given(data.get("attempt_count"), 0))), 2**31 - 1),
            created_at=created_at,
            due_at=reading.optional_instant(data.get("due_date")),
            paid_at=reading.optional_instant(reading.nested(data, "status_transitions", "paid_at")),
            next_payment_attempt_at=reading.optional_instant(data.get("next_payment_attempt")),
            period_start=period_start,
            period_end=reading.optional_instant(data.get("period_end")) or period_start,
            hosted_url=reading.optional_text(data.get("hosted_invoice_url")),
            pdf_url=reading.optional_text(data.get("invoice_pdf")),
            lines=tuple(lines),
            has_more_lines=has_more_lines,
        )
    except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise ValueError(f"not an invoice: {error!r}") from error


def lines_from_stripe(page: object, invoiced_at: datetime) -> tuple[Sequence[Line], bool]:
    """Read a page of an invoice's lines; returns them, and whether there are more. Raises ValueError."""
    if not isinstance(page, Mapping) or not isinstance(page.get("data"), list):
        return (), False
    try:
        return [_line(one, invoiced_at) for one in page["data"]], page.get("has_more") is True
    except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise ValueError(f"not an invoice's line: {error!r}") from error


def _line(data: Mapping[str, Any], invoiced_at: datetime) -> Line:
    start = reading.optional_instant(reading.nested(data, "period", "start")) or invoiced_at
    return Line(
        line_id=reading.optional_text(data.get("id")) or "",
        description=_sentence(data.get("description")),
        amount=_amount(_given(data.get("amount"), 0)),
        quantity=max(0, _amount(_given(data.get("quantity"), 0))),
        price_id=next(_price_ids(data), ""),
        period_start=start,
        period_end=reading.optional_instant(reading.nested(data, "period", "end")) or start,
        is_proration=any(
            value is True
            for value in (
                data.get("proration"),
                reading.nested(data, "parent", "subscription_item_details", "proration"),
                reading.nested(data, "parent", "invoice_item_details", "proration"),
            )
        ),
    )


def _subscription_id(data: Mapping[str, Any]) -> str | None:
    """Return what it bills: named under `parent` since 2025-03-31, at the top before."""
    for value in (reading.nested(data, "parent", "subscription_details", "subscription"), data.get("subscription")):
        found = reading.optional_id(value)
        if found is not None:
            return found
    return None


def _price_ids(data: Mapping[str, Any]) -> Iterator[str]:
    """Give the price of a line: under `pricing` since 2025-03-31, `price` before, a `plan` with the same id once."""
    for value in (reading.nested(data, "pricing", "price_details", "price"), data.get("price"), data.get("plan")):
        found = reading.optional_id(value)
        if found is not None:
            yield found


def _given(value: object, otherwise: int) -> object:
    return otherwise if value is None else value


def _sentence(value: object) -> str:
    """Return what was written for people, as a column can hold it."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in value[:DESCRIPTION_LENGTH_MAX])


def _amount(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -AMOUNT_MAX <= value <= AMOUNT_MAX:
        raise TypeError("not an amount")
    return value
