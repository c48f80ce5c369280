"""Usage reports as operators see them, in Postgres."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables
from billing_svc.usage_export import rules
from billing_svc.usage_export.states import ReportState

_REPORTS = tables.usage_reports
_REQUESTS = tables.stripe_requests

_ITEM_WRITE = "item_write"


@dataclass(frozen=True, slots=True)
class ReportFilter:
    """Which of an account's reports to list; None: all."""

    account_id: str
    state: ReportState | None = None


@dataclass(frozen=True, slots=True)
class ListedReport:
    """A report, and the state of the write that creates its invoice item; None if that was never begun."""

    report: rules.UsageReport
    item_write: str | None


async def listed(
    conn: AsyncConnection, choice: ReportFilter, after: tuple[datetime, str] | None, most: int
) -> list[ListedReport]:
    """Return an account's reports, newest first; with a position, those after it."""
    is_its_item = sa.and_(
        _REQUESTS.c.account_id == _REPORTS.c.account_id, _REQUESTS.c.purpose == _purpose(_REPORTS.c.report_id)
    )
    query = (
        sa.select(*select_list.columns(rules.UsageReport, _REPORTS), _REQUESTS.c.state.label(_ITEM_WRITE))
        .join(_REQUESTS, is_its_item, isouter=True)
        .where(_REPORTS.c.account_id == choice.account_id)
    )
    if choice.state is not None:
        query = query.where(_REPORTS.c.state == choice.state)
    order = (_REPORTS.c.sealed_at, _REPORTS.c.report_id)
    if after is not None:
        query = query.where(sa.tuple_(*order) < sa.tuple_(*(sa.literal(bound) for bound in after)))
    found = []
    for row in await conn.execute(query.order_by(*(column.desc() for column in order)).limit(most)):
        values = row._asdict()
        item_write = values.pop(_ITEM_WRITE)
        found.append(ListedReport(rules.UsageReport(**values | {"state": ReportState(row.state)}), item_write))
    return found


async def item_write(conn: AsyncConnection, report: rules.UsageReport) -> str | None:
    """Return the state of the write that creates a report's invoice item; None if it was never begun."""
    where = (
        _REQUESTS.c.account_id == report.account_id,
        _REQUESTS.c.purpose == _purpose(sa.literal(report.report_id)),
    )
    found: str | None = (await conn.execute(sa.select(_REQUESTS.c.state).where(*where))).scalar_one_or_none()
    return found


async def account_of(conn: AsyncConnection, report_id: str) -> str | None:
    """Return the account of a report; None if there is no such report. Reads the whole table: for commands only."""
    query = sa.select(_REPORTS.c.account_id).where(_REPORTS.c.report_id == report_id).limit(1)
    found: str | None = (await conn.execute(query)).scalar_one_or_none()
    return found


def _purpose(report_id: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """Return the purpose of the intent that creates a report's invoice item; see `late_charges`."""
    return sa.literal("usage-item:") + report_id
