"""Invoices in Postgres, as of the last fetch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables
from billing_svc.subscriptions.invoices import fetch_repayments, rules

_INVOICES = tables.invoices

# An invoice's place in a list: when it was created, and its id.
Position: TypeAlias = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class InvoiceFilter:
    """A list's filters; a filter that is None or empty does not apply."""

    account_id: str = ""
    status: str = ""
    # A status that is not in this list counts as `unknown`; used only if `status` is `unknown`.
    known_statuses: tuple[str, ...] = ()
    created_from: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class InvoiceRecord:
    """An invoice as stored; amounts are minor units."""

    account_id: str
    invoice_id: str
    subscription_id: str | None
    number: str | None
    status: str
    currency: str
    total: int
    amount_due: int
    amount_paid: int
    amount_credited: int
    amount_refunded: int
    dispute_status: str | None
    attempt_count: int
    next_payment_attempt_at: datetime | None
    due_at: datetime | None
    paid_at: datetime | None
    period_start: datetime
    period_end: datetime
    hosted_url: str | None
    pdf_url: str | None
    created_at: datetime
    lines: Sequence[Mapping[str, Any]]
    more_lines: bool

    @property
    def position(self) -> Position:
        """Return its place in the list."""
        return (self.created_at, self.invoice_id)


async def save(
    conn: AsyncConnection,
    account_id: str,
    invoice: rules.StripeInvoice,
    meters: Mapping[str, str],
    now: datetime,
) -> bool:
    """Write an invoice as of the last fetch; `meters` has the meter of each metered price.

    Returns whether that changed anything.
    """
    values = {
        "customer_id": invoice.customer_id,
        "subscription_id": invoice.subscription_id,
        "number": invoice.number,
        "status": invoice.status,
        "currency": invoice.currency,
        "total": invoice.total,
        "amount_due": invoice.amount_due,
        "amount_paid": invoice.amount_paid,
        "amount_credited": invoice.amount_credited,
        "latest_revision_id": invoice.latest_revision_id,
        "attempt_count": invoice.attempt_count,
        "next_payment_attempt_at": invoice.next_payment_attempt_at,
        "due_at": invoice.due_at,
        "paid_at": invoice.paid_at,
        "period_start": invoice.period_start,
        "period_end": invoice.period_end,
        "hosted_url": invoice.hosted_url,
        "pdf_url": invoice.pdf_url,
        "created_at": invoice.created_at,
        "lines": [_to_json(line, meters) for line in invoice.lines],
        "more_lines": invoice.has_more_lines,
    }
    insert = postgresql.insert(_INVOICES).values(
        account_id=account_id, invoice_id=invoice.invoice_id, **values, updated_at=now
    )
    changed = sa.or_(*(_INVOICES.c[name].is_distinct_from(insert.excluded[name]) for name in values))
    result = await conn.execute(
        insert.on_conflict_do_update(
            index_elements=[_INVOICES.c.account_id, _INVOICES.c.invoice_id],
            set_={name: insert.excluded[name] for name in (*values, "updated_at")},
            where=changed,
        ).returning(_INVOICES.c.invoice_id)
    )
    return result.scalar_one_or_none() is not None


async def is_stored(conn: AsyncConnection, account_id: str, invoice_id: str) -> bool:
    """Say whether an invoice is stored."""
    where = (_INVOICES.c.account_id == account_id, _INVOICES.c.invoice_id == invoice_id)
    return (await conn.execute(sa.select(_INVOICES.c.invoice_id).where(*where))).first() is not None


async def save_repaid(conn: AsyncConnection, account_id: str, repaid: fetch_repayments.Repaid, now: datetime) -> bool:
    """Write what was paid back of a stored invoice; returns whether that changed anything."""
    values = {"amount_refunded": repaid.amount_refunded, "dispute_status": repaid.dispute_status}
    changed = sa.or_(*(_INVOICES.c[name].is_distinct_from(value) for name, value in values.items()))
    result = await conn.execute(
        sa.update(_INVOICES)
        .where(_INVOICES.c.account_id == account_id, _INVOICES.c.invoice_id == repaid.invoice_id, changed)
        .values(**values, updated_at=now)
    )
    return result.rowcount == 1


async def repaid_since(conn: AsyncConnection, account_id: str | None, since: datetime) -> list[str]:
    """Return the invoices created since an instant of which something was paid back, or that were disputed."""
    query = sa.select(_INVOICES.c.invoice_id).where(
        _INVOICES.c.created_at >= since,
        sa.or_(_INVOICES.c.amount_refunded > 0, _INVOICES.c.dispute_status.is_not(None)),
    )
    if account_id is not None:
        query = query.where(_INVOICES.c.account_id == account_id)
    return list((await conn.execute(query.order_by(_INVOICES.c.invoice_id))).scalars())


async def delete(conn: AsyncConnection, account_id: str, invoice_id: str) -> bool:
    """Delete an invoice that Stripe has deleted; returns whether it was stored."""
    result = await conn.execute(
        sa.delete(_INVOICES).where(_INVOICES.c.account_id == account_id, _INVOICES.c.invoice_id == invoice_id)
    )
    return result.rowcount == 1


async def list_invoices(
    conn: AsyncConnection, choice: InvoiceFilter, after: Position | None, most: int
) -> list[InvoiceRecord]:
    """Return invoices, newest first; with a position, those after it."""
    query = sa.select(*select_list.columns(InvoiceRecord, _INVOICES))
    if choice.account_id:
        query = query.where(_INVOICES.c.account_id == choice.account_id)
    if choice.status == rules.UNKNOWN:
        query = query.where(_INVOICES.c.status.not_in(choice.known_statuses))
    elif choice.status:
        query = query.where(_INVOICES.c.status == choice.status)
    if choice.created_from is not None:
        query = query.where(_INVOICES.c.created_at >= choice.created_from)
    if choice.created_before is not None:
        query = query.where(_INVOICES.c.created_at < choice.created_before)
    order = (_INVOICES.c.created_at, _INVOICES.c.invoice_id)
    if after is not None:
        query = query.where(sa.tuple_(*order) < sa.tuple_(*(sa.literal(bound) for bound in after)))
    rows = await conn.execute(query.order_by(*(column.desc() for column in order)).limit(most))
    return [InvoiceRecord(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class OwedInvoices:
    """What is owed for a subscription: the sum in minor units, and the invoice that must be paid first."""

    amount: int
    currency: str
    invoice_id: str
    page_url: str | None


async def owed(conn: AsyncConnection, account_id: str, subscription_id: str) -> OwedInvoices | None:
    """Return what is owed for a subscription by its stored invoices; None if none is open.

    Stripe makes a subscription active again when its latest finalised invoice is paid.
    """
    query = (
        sa.select(_INVOICES)
        .where(_INVOICES.c.account_id == account_id, _INVOICES.c.subscription_id == subscription_id)
        .where(_INVOICES.c.status == "open")
        .order_by(_INVOICES.c.created_at.desc(), _INVOICES.c.invoice_id)
    )
    rows = list(await conn.execute(query))
    if not rows:
        return None
    amount = sum(max(0, row.amount_due - row.amount_paid) for row in rows if row.currency == rows[0].currency)
    return OwedInvoices(amount, rows[0].currency, rows[0].invoice_id, rows[0].hosted_url)


def _to_json(line: rules.InvoiceLine, meters: Mapping[str, str]) -> dict[str, object]:
    # Only late usage is found by its item, so the other lines are stored without one.
    item = {"item": line.item_id} if line.item_id and not line.price_id else {}
    return {
        **item,
        "description": line.description,
        "amount": line.amount,
        "quantity": line.quantity,
        "meter": meters.get(line.price_id, ""),
        "period_start": int(line.period_start.timestamp()),
        "period_end": int(line.period_end.timestamp()),
        "proration": line.is_proration,
    }
