"""Parses Stripe's invoices, of every API version. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing_svc.stripe import parse

# More than Stripe's bound on the description of an invoice item.
DESCRIPTION_LENGTH_MAX = 1000
# The largest int64, as in the column.
AMOUNT_MAX = 2**63 - 1
# Stands for the status if an old API version left it out.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """A line of an invoice; `price_id` is empty if the line has no price."""

    line_id: str
    description: str
    amount: int
    quantity: int
    price_id: str
    period_start: datetime
    period_end: datetime
    is_proration: bool
    product_id: str = ""


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
    lines: tuple[InvoiceLine, ...]
    # Stripe has more lines than these.
    has_more_lines: bool


def from_stripe(data: Mapping[str, Any]) -> StripeInvoice:
    """Parse an invoice of any API version; raises ValueError if it is not an invoice.

    A field that a version leaves out or sends as null is empty here; required are only id, customer, currency, total
    and time.
    """
    try:
        created_at = parse.instant(data.get("created") or data["date"])
        period_start = parse.optional_instant(data.get("period_start")) or created_at
        total = _amount(data["total"])
        lines, has_more_lines = lines_from_stripe(data.get("lines"), created_at)
        return StripeInvoice(
            invoice_id=parse.text(data["id"]),
            customer_id=parse.id_of(data["customer"]),
            subscription_id=_subscription_id(data),
            number=parse.optional_text(data.get("number")),
            status=parse.optional_text(data.get("status")) or UNKNOWN,
            currency=parse.text(data["currency"]).lower(),
            total=total,
            amount_due=_amount(_given(data.get("amount_due"), total)),
            amount_paid=_amount(_given(data.get("amount_paid"), 0)),
            attempt_count=min(max(0, _amount(_given(data.get("attempt_count"), 0))), 2**31 - 1),
            created_at=created_at,
            due_at=parse.optional_instant(data.get("due_date")),
            paid_at=parse.optional_instant(parse.nested(data, "status_transitions", "paid_at")),
            next_payment_attempt_at=parse.optional_instant(data.get("next_payment_attempt")),
            period_start=period_start,
            period_end=parse.optional_instant(data.get("period_end")) or period_start,
            hosted_url=parse.optional_text(data.get("hosted_invoice_url")),
            pdf_url=parse.optional_text(data.get("invoice_pdf")),
            lines=tuple(lines),
            has_more_lines=has_more_lines,
        )
    except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise ValueError(f"not an invoice: {error!r}") from error


def lines_from_stripe(page: object, invoiced_at: datetime) -> tuple[Sequence[InvoiceLine], bool]:
    """Parse a page of an invoice's lines; returns them, and whether there are more. Raises ValueError."""
    if not isinstance(page, Mapping) or not isinstance(page.get("data"), list):
        return (), False
    try:
        return [_line(line, invoiced_at) for line in page["data"]], page.get("has_more") is True
    except (KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise ValueError(f"not an invoice's line: {error!r}") from error


def _line(data: Mapping[str, Any], invoiced_at: datetime) -> InvoiceLine:
    start = parse.optional_instant(parse.nested(data, "period", "start")) or invoiced_at
    return InvoiceLine(
        line_id=parse.optional_text(data.get("id")) or "",
        description=_sentence(data.get("description")),
        amount=_amount(_given(data.get("amount"), 0)),
        quantity=max(0, _amount(_given(data.get("quantity"), 0))),
        price_id=next(_price_ids(data), ""),
        period_start=start,
        period_end=parse.optional_instant(parse.nested(data, "period", "end")) or start,
        is_proration=any(
            value is True
            for value in (
                data.get("proration"),
                parse.nested(data, "parent", "subscription_item_details", "proration"),
                parse.nested(data, "parent", "invoice_item_details", "proration"),
            )
        ),
        product_id=_product_id(data),
    )


def _subscription_id(data: Mapping[str, Any]) -> str | None:
    """Return the id of the invoice's subscription: under `parent` since 2025-03-31, at the top level before."""
    for value in (parse.nested(data, "parent", "subscription_details", "subscription"), data.get("subscription")):
        found = parse.optional_id(value)
        if found is not None:
            return found
    return None


def _price_ids(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line's price: under `pricing` since 2025-03-31, `price` before, or an old `plan` with the same id."""
    for value in (parse.nested(data, "pricing", "price_details", "price"), data.get("price"), data.get("plan")):
        found = parse.optional_id(value)
        if found is not None:
            yield found


def _product_id(data: Mapping[str, Any]) -> str:
    """Return the product of a line's price, from the places where the price is; empty if there is none."""
    for path in (("pricing", "price_details"), ("price",), ("plan",)):
        found = parse.optional_id(parse.nested(data, *path, "product"))
        if found is not None:
            return found
    return ""


def _given(value: object, otherwise: int) -> object:
    return otherwise if value is None else value


def _sentence(value: object) -> str:
    """Return a text field without characters that the column cannot hold."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in value[:DESCRIPTION_LENGTH_MAX])


def _amount(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -AMOUNT_MAX <= value <= AMOUNT_MAX:
        raise TypeError("not an amount")
    return value
