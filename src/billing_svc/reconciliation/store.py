"""What decides how far back a comparison looks, and what it leaves out."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables
from billing_svc.platform.findings import store as findings_store
from billing_svc.reconciliation import discrepancies
from billing_svc.usage_export import store as reports_store

_COUNTERS = tables.usage_counters
_FINDINGS = tables.findings
_INVOICES = tables.invoices
# Their money can still change, whatever their age.
_UNFINISHED_INVOICES = ("draft", "open")
_IS_UNSEALED = _COUNTERS.c.billable != _COUNTERS.c.sealed
_IS_FOUND = (_FINDINGS.c.closed_at.is_(None), _FINDINGS.c.kind.in_(findings_store.COMPARED_USAGE))


async def unsettled_accounts(conn: AsyncConnection) -> list[str]:
    """Return the accounts with usage of any age that is not settled: not sealed, not sent, refused, or a finding."""
    query = sa.union(
        sa.select(_COUNTERS.c.account_id).where(_IS_UNSEALED), sa.select(_FINDINGS.c.account_id).where(*_IS_FOUND)
    )
    return [*await reports_store.unsettled_accounts(conn), *(await conn.execute(query)).scalars()]


async def changed_accounts(conn: AsyncConnection, since: datetime, until: datetime) -> list[str]:
    """Return the accounts to compare again, sorted.

    Their usage, subscriptions or invoices changed, a period ended, or usage of any age is not settled. Whole tables are
    scanned, a few times a day: an index on `updated_at` would cost every record of usage.
    """
    counters, subscriptions = _COUNTERS.c, tables.subscriptions.c
    has_ended = sa.and_(counters.period_end >= since, counters.period_end <= until)
    is_billed = sa.or_(counters.billable > 0, counters.sealed > 0)
    query = sa.union(
        sa.select(counters.account_id).where(is_billed, sa.or_(counters.updated_at >= since, has_ended)),
        sa.select(subscriptions.account_id).where(subscriptions.updated_at >= since),
        sa.select(_INVOICES.c.account_id).where(_INVOICES.c.updated_at >= since),
    )
    changed = set((await conn.execute(query)).scalars())
    reported = await reports_store.changed_accounts(conn, since)
    return sorted(changed.union(reported, await unsettled_accounts(conn)))


async def compared_since(conn: AsyncConnection, account_id: str, since: datetime) -> datetime:
    """Return from which quota period on an account is compared: `since`, or earlier if usage is not settled."""
    unsealed = sa.select(sa.func.min(_COUNTERS.c.period_start)).where(
        _COUNTERS.c.account_id == account_id, _IS_UNSEALED
    )
    starts: list[datetime | None] = [await conn.scalar(unsealed), await reports_store.unsettled_since(conn, account_id)]
    found = sa.select(_FINDINGS.c.object_id).where(_FINDINGS.c.account_id == account_id, *_IS_FOUND)
    starts += [discrepancies.period_of(object_id) for object_id in (await conn.execute(found)).scalars()]
    return min([since, *(start for start in starts if start is not None)])


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many older quota periods with usage to charge, and how many older invoices, a comparison does not look at."""

    periods: int
    invoices: int


async def left_out(
    conn: AsyncConnection, account_id: str | None, usage_since: datetime, invoices_since: datetime
) -> LeftOut:
    """Return what lies before two instants; of invoices, those that were final here."""
    periods = sa.select(sa.func.count()).where(
        _COUNTERS.c.period_start < usage_since, sa.or_(_COUNTERS.c.billable > 0, _COUNTERS.c.sealed > 0)
    )
    invoices = sa.select(sa.func.count()).where(
        _INVOICES.c.created_at < invoices_since, _INVOICES.c.status.not_in(_UNFINISHED_INVOICES)
    )
    if account_id is not None:
        periods = periods.where(_COUNTERS.c.account_id == account_id)
        invoices = invoices.where(_INVOICES.c.account_id == account_id)
    return LeftOut((await conn.execute(periods)).scalar_one(), (await conn.execute(invoices)).scalar_one())


async def older_invoices(conn: AsyncConnection, account_id: str | None, before: datetime) -> dict[str, str]:
    """Return the account by invoice of invoices created before an instant whose money may still be wrong.

    They are draft or open here, or they differed when they were last compared.
    """
    found = sa.select(_FINDINGS.c.account_id, _FINDINGS.c.object_id).where(
        _FINDINGS.c.closed_at.is_(None),
        _FINDINGS.c.kind == findings_store.Kind.INVOICE,
        ~sa.exists().where(
            _INVOICES.c.account_id == _FINDINGS.c.account_id,
            _INVOICES.c.invoice_id == _FINDINGS.c.object_id,
            _INVOICES.c.created_at >= before,
        ),
    )
    unfinished = sa.select(_INVOICES.c.account_id, _INVOICES.c.invoice_id).where(
        _INVOICES.c.created_at < before, _INVOICES.c.status.in_(_UNFINISHED_INVOICES)
    )
    if account_id is not None:
        found = found.where(_FINDINGS.c.account_id == account_id)
        unfinished = unfinished.where(_INVOICES.c.account_id == account_id)
    return {row[1]: row[0] for row in await conn.execute(sa.union(found, unfinished))}
