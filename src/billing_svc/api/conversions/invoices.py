"""Converts invoices to their messages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from billing.v1 import admin_pb2, invoice_pb2, money_pb2, subscription_pb2
from billing_svc.api import fields, paging
from billing_svc.platform import money
from billing_svc.subscriptions.invoices import rules, store

# How many lines of an invoice an answer has; the contract promises this number.
LINES_SHOWN_MAX = 100
# A page ends before it exceeds the default message size of clients (4 MiB), however many lines its invoices have.
PAGE_BYTES_MAX = 3 * 1024 * 1024

_STATUSES: "Mapping[str, invoice_pb2.InvoiceStatus.ValueType]" = {
    "draft": invoice_pb2.INVOICE_STATUS_DRAFT,
    "open": invoice_pb2.INVOICE_STATUS_OPEN,
    "paid": invoice_pb2.INVOICE_STATUS_PAID,
    "void": invoice_pb2.INVOICE_STATUS_VOID,
    "uncollectible": invoice_pb2.INVOICE_STATUS_UNCOLLECTIBLE,
}
_DISPUTES: "Mapping[str, invoice_pb2.DisputeState.ValueType]" = {
    "warning_needs_response": invoice_pb2.DISPUTE_STATE_OPEN,
    "warning_under_review": invoice_pb2.DISPUTE_STATE_OPEN,
    "needs_response": invoice_pb2.DISPUTE_STATE_OPEN,
    "under_review": invoice_pb2.DISPUTE_STATE_OPEN,
    "warning_closed": invoice_pb2.DISPUTE_STATE_WON,
    "prevented": invoice_pb2.DISPUTE_STATE_WON,
    "won": invoice_pb2.DISPUTE_STATE_WON,
    "lost": invoice_pb2.DISPUTE_STATE_LOST,
}
_FILTERS = {status: word for word, status in _STATUSES.items()} | {invoice_pb2.INVOICE_STATUS_UNKNOWN: rules.UNKNOWN}


def from_proto_list(request: subscription_pb2.ListInvoicesRequest) -> tuple[store.InvoiceFilter, paging.Page]:
    """Return which invoices of an account are requested. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    check.account_id(request.account_id)
    status = _from_proto_status(check, request.status)
    scope = ("invoices", request.account_id, status)
    page = paging.from_proto(request, check, scope, paging.instant, str)
    return store.InvoiceFilter(request.account_id, status, tuple(_STATUSES)), page


def from_proto_list_all(request: admin_pb2.ListAllInvoicesRequest) -> tuple[store.InvoiceFilter, paging.Page]:
    """Return which invoices of all accounts are requested. Raises InvalidRequest and InvalidPageToken."""
    check = fields.Fields()
    status = _from_proto_status(check, request.status)
    since, before = None, None
    if request.HasField("created_from"):
        since = check.instant("created_from", request.created_from)
    if request.HasField("created_before"):
        before = check.instant("created_before", request.created_before)
    page = paging.from_proto(request, check, ("all invoices", status, since, before), paging.instant, str)
    return store.InvoiceFilter("", status, tuple(_STATUSES), since, before), page


def to_proto_list(rows: Sequence[store.InvoiceRecord], page: paging.Page) -> tuple[list[invoice_pb2.Invoice], str]:
    """Return a page and the next page's token; `rows` has one element more than the page if there is a next page."""
    shown: list[invoice_pb2.Invoice] = []
    size_bytes = 0
    for row in rows[: page.size]:
        invoice = to_proto_invoice(row)
        size_bytes += invoice.ByteSize()
        if shown and size_bytes > PAGE_BYTES_MAX:
            page = replace(page, size=len(shown))
            break
        shown.append(invoice)
    _, token = page.cut(rows, lambda row: (row.created_at.isoformat(), row.invoice_id))
    return shown, token


def to_proto_invoice(row: store.InvoiceRecord) -> invoice_pb2.Invoice:
    """Return an invoice as it was at the last fetch from Stripe."""
    return invoice_pb2.Invoice(
        invoice_id=row.invoice_id,
        account_id=row.account_id,
        number=row.number or "",
        status=_STATUSES.get(row.status, invoice_pb2.INVOICE_STATUS_UNKNOWN),
        total=to_proto_amount(row.total, row.currency),
        amount_due=to_proto_amount(row.amount_due, row.currency),
        amount_paid=to_proto_amount(row.amount_paid, row.currency),
        created_at=fields.to_proto_instant(row.created_at),
        due_at=fields.to_proto_instant(row.due_at),
        paid_at=fields.to_proto_instant(row.paid_at),
        next_payment_attempt_at=fields.to_proto_instant(row.next_payment_attempt_at),
        period_start=fields.to_proto_instant(row.period_start),
        period_end=fields.to_proto_instant(row.period_end),
        hosted_url=row.hosted_url or "",
        pdf_url=row.pdf_url or "",
        subscription_id=row.subscription_id or "",
        lines=[_to_proto_line(line, row.currency) for line in row.lines[:LINES_SHOWN_MAX]],
        more_lines=row.more_lines or len(row.lines) > LINES_SHOWN_MAX,
        attempt_count=row.attempt_count,
        amount_refunded=to_proto_amount(row.amount_refunded, row.currency),
        amount_credited=to_proto_amount(row.amount_credited, row.currency),
        dispute=to_proto_dispute(row.dispute_status),
    )


def _to_proto_line(line: Mapping[str, Any], currency: str) -> invoice_pb2.InvoiceLine:
    return invoice_pb2.InvoiceLine(
        description=line["description"],
        amount=to_proto_amount(line["amount"], currency),
        quantity=line["quantity"],
        meter=line["meter"],
        period_start=fields.to_proto_instant(datetime.fromtimestamp(line["period_start"], UTC)),
        period_end=fields.to_proto_instant(datetime.fromtimestamp(line["period_end"], UTC)),
        proration=line["proration"],
    )


def to_proto_dispute(status: str | None) -> "invoice_pb2.DisputeState.ValueType":
    """Return the state of a dispute with this status of Stripe; None: there is none."""
    if status is None:
        return invoice_pb2.DISPUTE_STATE_UNSPECIFIED
    return _DISPUTES.get(status, invoice_pb2.DISPUTE_STATE_UNKNOWN)


def to_proto_amount(minor_units: int, currency: str) -> money_pb2.Money:
    """Return an amount in major units."""
    return fields.to_proto_money(money.major_units(minor_units, currency), currency)


def _from_proto_status(check: fields.Fields, status: "invoice_pb2.InvoiceStatus.ValueType") -> str:
    """Return the status to filter by, in Stripe's words; empty for any status."""
    if status == invoice_pb2.INVOICE_STATUS_UNSPECIFIED:
        return ""
    if status not in _FILTERS:
        check.refuse("status", f"is {status}, which is not a value of InvoiceStatus")
    return _FILTERS.get(status, "")
