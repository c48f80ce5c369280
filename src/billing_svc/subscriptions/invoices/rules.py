"""Parses Stripe's invoices, of every API version. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from billing_svc.stripe import parse

# More than Stripe's bound on the description of an invoice item.
DESCRIPTION_LENGTH_MAX = 1000
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
    # Of a draft: whether Stripe finalises it by itself, when, and why it could not.
    auto_advance: bool = True
    finalizes_at: datetime | None = None
    finalization_error: str | None = None
    # It is an invoice of late usage, made by this service.
    is_of_usage: bool = False


def from_stripe(data: object) -> StripeInvoice:
    """Parse an invoice of any API version; raises StripeObjectUnreadable.

    A field that a version leaves out or sends as null is empty here; required are only id, customer, currency, total
    and time.
    """
    fields = parse.StripeFields.of(data, "invoice")
    created_at = fields.instant(fields.first("created", "date"))
    period_start = fields.optional_instant("period_start") or created_at
    total = fields.whole("total")
    lines, has_more_lines = lines_from_stripe(fields.get("lines"), created_at, fields.about)
    transitions = fields.optional_part("status_transitions")
    return StripeInvoice(
        invoice_id=fields.text("id"),
        customer_id=fields.id("customer"),
        subscription_id=_subscription_id(data),
        number=parse.optional_text(fields.get("number")),
        status=parse.optional_text(fields.get("status")) or UNKNOWN,
        currency=fields.text("currency").lower(),
        total=total,
        amount_due=fields.whole("amount_due", otherwise=total),
        amount_paid=fields.whole("amount_paid", otherwise=0),
        attempt_count=min(max(0, fields.whole("attempt_count", otherwise=0)), 2**31 - 1),
        created_at=created_at,
        due_at=fields.optional_instant("due_date"),
        paid_at=None if transitions is None else transitions.optional_instant("paid_at"),
        next_payment_attempt_at=fields.optional_instant("next_payment_attempt"),
        period_start=period_start,
        period_end=fields.optional_instant("period_end") or period_start,
        hosted_url=parse.optional_text(fields.get("hosted_invoice_url")),
        pdf_url=parse.optional_text(fields.get("invoice_pdf")),
        lines=tuple(lines),
        has_more_lines=has_more_lines,
        auto_advance=fields.get("auto_advance") in (True, 1),
        finalizes_at=parse.readable_instant(fields.get("automatically_finalizes_at")),
        finalization_error=_finalization_error(data),
        is_of_usage=bool(parse.nested(data, "metadata", "usage_report")),
    )


def lines_from_stripe(page: object, invoiced_at: datetime, about: str) -> tuple[Sequence[InvoiceLine], bool]:
    """Parse a page of an invoice's lines; returns them, and whether there are more. Raises StripeObjectUnreadable.

    `about` names the invoice.
    """
    if not isinstance(parse.nested(page, "data"), list):
        return (), False  # the invoice is shown without its lines, which some versions leave out
    fields = parse.StripeFields(page, about, "lines")
    return [_line(line, invoiced_at) for line in fields.each("data")], fields.flag("has_more")


def _line(line: parse.StripeFields, invoiced_at: datetime) -> InvoiceLine:
    period = line.optional_part("period")
    start = (None if period is None else period.optional_instant("start")) or invoiced_at
    end = (None if period is None else period.optional_instant("end")) or start
    parent = line.get("parent")
    return InvoiceLine(
        line_id=parse.optional_text(line.get("id")) or "",
        description=_sentence(line.get("description")),
        amount=line.whole("amount", otherwise=0),
        quantity=max(0, line.whole("quantity", otherwise=0)),
        price_id=next(_price_ids(line), ""),
        period_start=start,
        period_end=end,
        is_proration=any(
            value is True
            for value in (
                line.get("proration"),
                parse.nested(parent, "subscription_item_details", "proration"),
                parse.nested(parent, "invoice_item_details", "proration"),
            )
        ),
        product_id=_product_id(line),
    )


def _finalization_error(data: object) -> str | None:
    """Return why Stripe could not finalise a draft, as Stripe's code; None if it did not try."""
    if parse.nested(data, "last_finalization_error") is None:
        return None
    return parse.optional_text(parse.nested(data, "last_finalization_error", "code")) or "unknown"


def _subscription_id(data: object) -> str | None:
    """Return the id of the invoice's subscription: under `parent` since 2025-03-31, at the top level before."""
    for path in (("parent", "subscription_details", "subscription"), ("subscription",)):
        found = parse.optional_id(parse.nested(data, *path))
        if found is not None:
            return found
    return None


def _price_ids(line: parse.StripeFields) -> Iterator[str]:
    """Yield a line's price: under `pricing` since 2025-03-31, `price` before, or an old `plan` with the same id."""
    current = parse.nested(line.get("pricing"), "price_details", "price")
    for value in (current, line.get("price"), line.get("plan")):
        found = parse.optional_id(value)
        if found is not None:
            yield found


def _product_id(line: parse.StripeFields) -> str:
    """Return the product of a line's price, from the places where the price is; empty if there is none."""
    for holder in (parse.nested(line.get("pricing"), "price_details"), line.get("price"), line.get("plan")):
        found = parse.optional_id(parse.nested(holder, "product"))
        if found is not None:
            return found
    return ""


def _sentence(value: object) -> str:
    """Return a text field without characters that the column cannot hold."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in value[:DESCRIPTION_LENGTH_MAX])
