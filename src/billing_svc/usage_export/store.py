"""Usage reports in Postgres. A caller that writes the results of sending must hold the account's lease."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables
from billing_svc.stripe import subscription_records
from billing_svc.usage_export import rules, states
from billing_svc.usage_export.states import ReportState

# Bound on an account's reports in one round; with a report for each meter and period there are few.
OPEN_MAX = 200

_REPORTS = tables.usage_reports
_PRICES = tables.stripe_prices
# Literals, so that Postgres can use the partial indexes.
_IS_UNSETTLED = sa.or_(
    _REPORTS.c.state.in_([sa.literal_column(f"'{state}'") for state in states.OPEN]),
    _REPORTS.c.state == sa.literal_column("'failed'"),
)

_UNITS = _REPORTS.c.to_units - _REPORTS.c.from_units
_COLUMNS = select_list.columns(rules.UsageReport, _REPORTS)


@dataclass(frozen=True, slots=True)
class ChargedUnits:
    """The units and the amount charged so far for a counter under one charge: by its meter, and by invoice items."""

    on_the_meter: int
    on_items: int
    by_items: int


def will_be_invoiced(held: Sequence[subscription_records.SubscriptionRecord], customer_id: str) -> bool:
    """Say whether the next invoice of a subscription will take the customer's pending invoice items."""
    return any(record.customer_id == customer_id and record.is_giving for record in held)


async def due_accounts(conn: AsyncConnection, most: int, now: datetime) -> list[str]:
    """Return the accounts with reports to send or charge now, those that have waited longest first."""
    query = (
        sa.select(_REPORTS.c.account_id)
        .where(_REPORTS.c.state.in_(states.OPEN), _REPORTS.c.next_attempt_at <= now)
        .group_by(_REPORTS.c.account_id)
        .order_by(sa.func.min(_REPORTS.c.next_attempt_at), _REPORTS.c.account_id)
        .limit(most)
    )
    return list((await conn.execute(query)).scalars())


async def open_reports(conn: AsyncConnection, account_id: str) -> list[rules.UsageReport]:
    """Return the account's reports that are in an open state, in the order in which they are to be sent."""
    query = (
        sa.select(*_COLUMNS)
        .where(_REPORTS.c.account_id == account_id, _REPORTS.c.state.in_(states.OPEN))
        .order_by(_REPORTS.c.period_start, _REPORTS.c.meter, _REPORTS.c.slice)
        .limit(OPEN_MAX)
    )
    return [_report(row) for row in await conn.execute(query)]


async def all_of_account(conn: AsyncConnection, account_id: str, since: datetime) -> list[rules.UsageReport]:
    """Return every report of the periods that began at `since` or later."""
    query = (
        sa.select(*_COLUMNS)
        .where(_REPORTS.c.account_id == account_id, _REPORTS.c.period_start >= since)
        .order_by(_REPORTS.c.period_start, _REPORTS.c.meter, _REPORTS.c.slice)
    )
    return [_report(row) for row in await conn.execute(query)]


async def lock_last(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime
) -> rules.UsageReport | None:
    """Lock a counter's newest report, so that it is not sent while it grows; None if there is no report."""
    query = (
        sa.select(*_COLUMNS)
        .where(*_of_counter(account_id, meter, period_start))
        .order_by(_REPORTS.c.slice.desc())
        .limit(1)
        .with_for_update()
    )
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else _report(row)


async def accrued(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime
) -> list[rules.AccruedUnits]:
    """Return a counter's accrued units under each charge, the newest charge first."""
    columns = select_list.columns(rules.ChargeTerms, _REPORTS, event_name=_REPORTS.c.stripe_event_name)
    query = (
        sa.select(sa.cast(sa.func.sum(_UNITS), sa.BigInteger), *columns)
        .where(*_of_counter(account_id, meter, period_start))
        .group_by(*columns)
        .order_by(sa.func.max(_REPORTS.c.slice).desc())
    )
    return [rules.AccruedUnits(rules.ChargeTerms(*charge), units) for units, *charge in await conn.execute(query)]


async def last_added_at(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime, charge: rules.ChargeTerms
) -> datetime | None:
    """Return the latest timestamp of a report that added a counter's units under a charge; None if there is none."""
    query = sa.select(sa.func.max(_REPORTS.c.reported_for)).where(
        *_of_counter(account_id, meter, period_start),
        _UNITS > 0,
        _REPORTS.c.plan == charge.plan,
        _REPORTS.c.catalog_version == charge.catalog_version,
        _REPORTS.c.customer_id == charge.customer_id,
        _REPORTS.c.subscription_id.is_not_distinct_from(charge.subscription_id),
    )
    found: datetime | None = (await conn.execute(query)).scalar_one()
    return found


async def insert(conn: AsyncConnection, report: rules.UsageReport) -> None:
    """Store a new report."""
    values = {name: getattr(report, name) for name in select_list.field_names(rules.UsageReport)}
    await conn.execute(sa.insert(_REPORTS).values(**values))


async def begin_attempt(
    conn: AsyncConnection, report: rules.UsageReport, next_attempt_at: datetime, now: datetime
) -> rules.UsageReport | None:
    """Store an attempt before the call, and return the report as it is to be sent; None if it is no longer accrued."""
    result = await conn.execute(
        sa.update(_REPORTS)
        .where(*_is(report), _REPORTS.c.state == ReportState.SEALED)
        .values(
            attempts=_REPORTS.c.attempts + 1,
            first_attempt_at=sa.func.coalesce(_REPORTS.c.first_attempt_at, now),
            last_attempt_at=now,
            next_attempt_at=next_attempt_at,
        )
        .returning(*_COLUMNS)
    )
    row = result.one_or_none()
    return None if row is None else _report(row)


async def write(conn: AsyncConnection, report: rules.UsageReport, change: states.Change) -> rules.UsageReport | None:
    """Change a report and return the new row; return None and write nothing if the change is not allowed.

    It is not allowed if another writer has changed the report's state or identifier since it was read, or if the
    transition cannot begin in its state.
    """
    as_read = (_REPORTS.c.state == report.state, _REPORTS.c.identifier == report.identifier)
    update = sa.update(_REPORTS).where(*_is(report), *as_read).values(**change.columns)
    if change.transition is not None:
        begins = _REPORTS.c.state.in_(change.transition.sources)
        update = update.where(begins).values(state=change.transition.target)
    row = (await conn.execute(update.returning(*_COLUMNS))).one_or_none()
    return None if row is None else _report(row)


async def sent_in_minute(conn: AsyncConnection, report: rules.UsageReport) -> int:
    """Return the units sent to the report's meter and customer in the minute of its timestamp, without this report.

    A customer or a meter is never shared between accounts, so only the account's own reports count.
    """
    return await sent_between(conn, report, report.minute, report.minute + timedelta(minutes=1))


async def sent_between(conn: AsyncConnection, report: rules.UsageReport, start: datetime, end: datetime) -> int:
    """Return the units sent to the report's meter and customer with a timestamp in [start, end)."""
    query = sa.select(sa.func.coalesce(sa.func.sum(_UNITS), 0)).where(
        _REPORTS.c.account_id == report.account_id,
        _REPORTS.c.customer_id == report.customer_id,
        _REPORTS.c.stripe_event_name == report.stripe_event_name,
        # Of the reports charged by items, the meter has only those that arrived there and that no invoice charged.
        sa.or_(
            _REPORTS.c.state == ReportState.SENT,
            sa.and_(
                _REPORTS.c.state.in_((ReportState.LATE, ReportState.ITEMISED, ReportState.INVOICED)),
                _REPORTS.c.first_attempt_at.is_not(None),
            ),
        ),
        _REPORTS.c.reported_for >= start,
        _REPORTS.c.reported_for < end,
    )
    return int((await conn.execute(query)).scalar_one())


async def charged(conn: AsyncConnection, report: rules.UsageReport) -> ChargedUnits:
    """Return what is charged so far for the report's counter under the report's charge, without this report."""
    own = _REPORTS.c.report_id != report.report_id
    sent, priced = _REPORTS.c.state == ReportState.SENT, sa.and_(_REPORTS.c.amount.is_not(None), own)
    query = sa.select(
        _total(_UNITS, sent).label("on_the_meter"),
        _total(_UNITS, priced).label("on_items"),
        _total(_REPORTS.c.amount, priced).label("by_items"),
    ).where(
        *_of_counter(report.account_id, report.meter, report.period_start),
        _REPORTS.c.plan == report.plan,
        _REPORTS.c.catalog_version == report.catalog_version,
        _REPORTS.c.stripe_event_name == report.stripe_event_name,
        _REPORTS.c.subscription_id.is_not_distinct_from(report.subscription_id),
    )
    return ChargedUnits(**(await conn.execute(query)).mappings().one())


async def is_changing(conn: AsyncConnection, account_id: str, since: datetime) -> bool:
    """Say whether a request to change or cancel the account's plan was begun since `since` and is still open."""
    requests = tables.change_requests.c
    query = sa.select(requests.request_id).where(
        requests.account_id == account_id,
        requests.kind.in_(("change_plan", "cancel")),
        requests.closed_at.is_(None),
        requests.created_at >= since,
    )
    return (await conn.execute(query.limit(1))).first() is not None


async def price_ids(conn: AsyncConnection, event_name: str) -> set[str]:
    """Return the ids of all prices, also of old prices, that charge a meter's units."""
    query = sa.select(_PRICES.c.price_id).where(_PRICES.c.stripe_event_name == event_name)
    return set((await conn.execute(query)).scalars())


async def named(conn: AsyncConnection, identifiers: Sequence[str]) -> list[rules.UsageReport]:
    """Return the reports with these identifiers, of any account."""
    query = sa.select(*_COLUMNS).where(_REPORTS.c.identifier.in_(identifiers))
    return [_report(row) for row in await conn.execute(query.order_by(_REPORTS.c.account_id))]


async def failed(conn: AsyncConnection, account_id: str) -> list[rules.UsageReport]:
    """Return the account's failed reports, which wait for an operator's retry."""
    query = sa.select(*_COLUMNS).where(_REPORTS.c.account_id == account_id, _REPORTS.c.state == ReportState.FAILED)
    rows = await conn.execute(query.order_by(_REPORTS.c.period_start, _REPORTS.c.meter, _REPORTS.c.slice))
    return [_report(row) for row in rows]


async def itemised_since(
    conn: AsyncConnection, account_id: str, customer_id: str, since: datetime
) -> list[rules.UsageReport]:
    """Return the customer's reports that were given to an invoice item since `since` and count as invoiced."""
    query = sa.select(*_COLUMNS).where(
        _REPORTS.c.account_id == account_id,
        _REPORTS.c.customer_id == customer_id,
        _REPORTS.c.state == ReportState.INVOICED,
        _REPORTS.c.invoice_item_id.is_not(None),
        _REPORTS.c.closed_at >= since,
    )
    rows = await conn.execute(query.order_by(_REPORTS.c.period_start, _REPORTS.c.meter, _REPORTS.c.slice))
    return [_report(row) for row in rows]


async def find(conn: AsyncConnection, account_id: str, report_id: str) -> rules.UsageReport | None:
    """Return a report; None if there is no report with that id."""
    query = sa.select(*_COLUMNS).where(_REPORTS.c.account_id == account_id, _REPORTS.c.report_id == report_id)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else _report(row)


async def unsettled_accounts(conn: AsyncConnection) -> list[str]:
    """Return the accounts with reports of any age that the worker still has to act on, or that failed."""
    return list((await conn.execute(sa.select(_REPORTS.c.account_id).distinct().where(_IS_UNSETTLED))).scalars())


async def unsettled_since(conn: AsyncConnection, account_id: str) -> datetime | None:
    """Return the beginning of the account's earliest period with such a report."""
    first = sa.func.min(_REPORTS.c.period_start)
    start: datetime | None = await conn.scalar(
        sa.select(first).where(_REPORTS.c.account_id == account_id, _IS_UNSETTLED)
    )
    return start


async def changed_accounts(conn: AsyncConnection, since: datetime) -> list[str]:
    """Return the accounts with reports that were made or settled since an instant. Scans the table."""
    has_changed = sa.or_(_REPORTS.c.sealed_at >= since, _REPORTS.c.closed_at >= since)
    return list((await conn.execute(sa.select(_REPORTS.c.account_id).distinct().where(has_changed))).scalars())


def _total(column: sa.ColumnElement[int], where: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.cast(sa.func.coalesce(sa.func.sum(column).filter(where), 0), sa.BigInteger)


def _report(row: sa.Row[Any]) -> rules.UsageReport:
    return rules.UsageReport(**row._asdict() | {"state": ReportState(row.state)})


def _is(report: rules.UsageReport) -> tuple[sa.ColumnElement[bool], ...]:
    return (_REPORTS.c.account_id == report.account_id, _REPORTS.c.report_id == report.report_id)


def _of_counter(account_id: str, meter: str, period_start: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        _REPORTS.c.account_id == account_id,
        _REPORTS.c.meter == meter,
        _REPORTS.c.period_start == period_start,
    )
