"""Slices in Postgres. Whoever writes what sending brought about holds the account's lease."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.usage_export import rules, states
from billing_svc.usage_export.states import ReportState

# An account's slices that are looked at in one round; with one for each meter and period there are a handful.
OPEN_MAX = 200

_REPORTS = tables.usage_reports
_SUBSCRIPTIONS = tables.subscriptions
_PRICES = tables.stripe_prices

_UNITS = _REPORTS.c.to_units - _REPORTS.c.from_units
_COLUMNS = [_REPORTS.c[name] for name in rules.UsageReport.__dataclass_fields__]


@dataclass(frozen=True, slots=True)
class BillableSubscription:
    """A subscription of the account, as far as billing usage needs it."""

    subscription_id: str
    customer_id: str
    plan: str
    catalog_version: int
    status: str
    is_plan: bool
    billing_period_start: datetime
    billing_period_end: datetime
    trial_end: datetime | None
    ended_at: datetime | None
    effective_from: datetime
    effective_until: datetime | None
    superfluous: bool

    def was_trial(self, at: datetime) -> bool:
        """Say whether its trial went on at an instant: what is used in it is free."""
        return self.trial_end is not None and self.effective_from <= at < self.trial_end


@dataclass(frozen=True, slots=True)
class ChargedUnits:
    """What is charged of a counter under one charge so far, by its meter and by invoice items."""

    on_the_meter: int
    on_items: int
    by_items: int


def will_be_invoiced(held: Sequence[BillableSubscription], customer_id: str) -> bool:
    """Say whether a customer's pending invoice items come with the next invoice of a subscription."""
    return any(one.customer_id == customer_id and one.status in stripe_subscriptions.GIVING for one in held)


async def due_accounts(conn: AsyncConnection, most: int, now: datetime) -> list[str]:
    """Return the accounts that have something to be sent or charged now, the longest waiting first."""
    query = (
        sa.select(_REPORTS.c.account_id)
        .where(_REPORTS.c.state.in_(states.OPEN), _REPORTS.c.next_attempt_at <= now)
        .group_by(_REPORTS.c.account_id)
        .order_by(sa.func.min(_REPORTS.c.next_attempt_at), _REPORTS.c.account_id)
        .limit(most)
    )
    return list((await conn.execute(query)).scalars())


async def open_reports(conn: AsyncConnection, account_id: str) -> list[rules.UsageReport]:
    """Return the account's slices that are not done with, in the order in which they are to be sent."""
    query = (
        sa.select(*_COLUMNS)
        .where(_REPORTS.c.account_id == account_id, _REPORTS.c.state.in_(states.OPEN))
        .order_by(_REPORTS.c.period_start, _REPORTS.c.meter, _REPORTS.c.slice)
        .limit(OPEN_MAX)
    )
    return [_report(row) for row in await conn.execute(query)]


async def all_of_account(conn: AsyncConnection, account_id: str, since: datetime) -> list[rules.UsageReport]:
    """Return every slice of the periods that began at an instant or later."""
    query = (
        sa.select(*_COLUMNS)
        .where(_REPORTS.c.account_id == account_id, _REPORTS.c.period_start >= since)
        .order_by(_REPORTS.c.period_start, _REPORTS.c.meter, _REPORTS.c.slice)
    )
    return [_report(row) for row in await conn.execute(query)]


async def lock_last(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime
) -> rules.UsageReport | None:
    """Lock the newest slice of a counter, so that it is not sent while it grows; None if there is none."""
    query = (
        sa.select(*_COLUMNS)
        .where(*_of_counter(account_id, meter, period_start))
        .order_by(_REPORTS.c.slice.desc())
        .limit(1)
        .with_for_update()
    )
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else _report(row)


async def standing(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime
) -> list[rules.AccruedUnits]:
    """Return what is sealed of a counter under each charge, the newest first."""
    columns = (
        _REPORTS.c.plan,
        _REPORTS.c.catalog_version,
        _REPORTS.c.stripe_event_name,
        _REPORTS.c.customer_id,
        _REPORTS.c.subscription_id,
    )
    query = (
        sa.select(*columns, sa.cast(sa.func.sum(_UNITS), sa.BigInteger))
        .where(*_of_counter(account_id, meter, period_start))
        .group_by(*columns)
        .order_by(sa.func.max(_REPORTS.c.slice).desc())
    )
    return [rules.AccruedUnits(rules.Charge(*row[:5]), row[5]) for row in await conn.execute(query)]


async def last_added_at(
    conn: AsyncConnection, account_id: str, meter: str, period_start: datetime, charge: rules.Charge
) -> datetime | None:
    """Return the latest timestamp with which a counter's units were charged under a charge; None if none were."""
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
    """Store a new slice."""
    values = {name: getattr(report, name) for name in rules.UsageReport.__dataclass_fields__}
    await conn.execute(sa.insert(_REPORTS).values(**values))


async def begin_attempt(
    conn: AsyncConnection, report: rules.UsageReport, next_attempt_at: datetime, now: datetime
) -> rules.UsageReport | None:
    """Note an attempt before it is made, and return the slice as it is to be sent; None if it is not open any more."""
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
    """Change a slice and return it as it is then; None, and nothing is written, if that may not be.

    It may not if another writer has changed its state or its identifier since it was read, or if the transition does
    not begin in its state.
    """
    as_read = (_REPORTS.c.state == report.state, _REPORTS.c.identifier == report.identifier)
    update = sa.update(_REPORTS).where(*_is(report), *as_read).values(**change.columns)
    if change.transition is not None:
        begins = _REPORTS.c.state.in_(change.transition.sources)
        update = update.where(begins).values(state=change.transition.target)
    row = (await conn.execute(update.returning(*_COLUMNS))).one_or_none()
    return None if row is None else _report(row)


async def sent_in_minute(conn: AsyncConnection, report: rules.UsageReport) -> int:
    """Return what the slice's meter was sent for its customer with a timestamp in the slice's minute, without itself.

    All customers and meters of an account are its own, so the account's slices are all that there are.
    """
    return await sent_between(conn, report, report.minute, report.minute + timedelta(minutes=1))


async def sent_between(conn: AsyncConnection, report: rules.UsageReport, start: datetime, end: datetime) -> int:
    """Return what the slice's meter was sent for its customer with a timestamp in [start, end)."""
    query = sa.select(sa.func.coalesce(sa.func.sum(_UNITS), 0)).where(
        _REPORTS.c.account_id == report.account_id,
        _REPORTS.c.customer_id == report.customer_id,
        _REPORTS.c.stripe_event_name == report.stripe_event_name,
        # Of what is charged by items, that is what its meter has and no invoice charged; the rest never arrived there.
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
    """Return what the slice's counter is charged under the slice's charge, apart from the slice."""
    own = _REPORTS.c.report_id != report.report_id
    sent, priced = _REPORTS.c.state == ReportState.SENT, sa.and_(_REPORTS.c.amount.is_not(None), own)
    query = sa.select(
        *(
            sa.func.coalesce(sa.func.sum(what).filter(which), 0)
            for what, which in ((_UNITS, sent), (_UNITS, priced), (_REPORTS.c.amount, priced))
        )
    ).where(
        *_of_counter(report.account_id, report.meter, report.period_start),
        _REPORTS.c.plan == report.plan,
        _REPORTS.c.catalog_version == report.catalog_version,
        _REPORTS.c.stripe_event_name == report.stripe_event_name,
        _REPORTS.c.subscription_id.is_not_distinct_from(report.subscription_id),
    )
    row = (await conn.execute(query)).one()
    return ChargedUnits(int(row[0]), int(row[1]), int(row[2]))


async def subscriptions(conn: AsyncConnection, account_id: str) -> list[BillableSubscription]:
    """Return the account's subscriptions, the latest first."""
    columns = [_SUBSCRIPTIONS.c[name] for name in BillableSubscription.__dataclass_fields__]
    query = sa.select(*columns).where(_SUBSCRIPTIONS.c.account_id == account_id)
    rows = await conn.execute(query.order_by(_SUBSCRIPTIONS.c.effective_from.desc(), _SUBSCRIPTIONS.c.subscription_id))
    return [BillableSubscription(*row) for row in rows]


async def is_changing(conn: AsyncConnection, account_id: str, since: datetime) -> bool:
    """Say whether a request to change or end what the account bought was begun since then and is not closed."""
    requests = tables.change_requests.c
    query = sa.select(requests.request_id).where(
        requests.account_id == account_id,
        requests.kind.in_(("change_plan", "cancel")),
        requests.closed_at.is_(None),
        requests.created_at >= since,
    )
    return (await conn.execute(query.limit(1))).first() is not None


async def customer_of_account(conn: AsyncConnection, account_id: str) -> str | None:
    """Return the account's customer at Stripe; None if it has none."""
    query = sa.select(tables.accounts.c.customer_id).where(tables.accounts.c.account_id == account_id)
    return (await conn.execute(query)).scalar_one_or_none()


async def price_ids(conn: AsyncConnection, event_name: str) -> set[str]:
    """Return every price that ever charged what a meter adds up."""
    query = sa.select(_PRICES.c.price_id).where(_PRICES.c.stripe_event_name == event_name)
    return set((await conn.execute(query)).scalars())


async def named(conn: AsyncConnection, identifiers: Sequence[str]) -> list[rules.UsageReport]:
    """Return the slices that Stripe knows by these identifiers, whosever they are."""
    query = sa.select(*_COLUMNS).where(_REPORTS.c.identifier.in_(identifiers))
    return [_report(row) for row in await conn.execute(query.order_by(_REPORTS.c.account_id))]


async def failed(conn: AsyncConnection, account_id: str) -> list[rules.UsageReport]:
    """Return the account's slices that wait for somebody to retry them."""
    query = sa.select(*_COLUMNS).where(_REPORTS.c.account_id == account_id, _REPORTS.c.state == ReportState.FAILED)
    rows = await conn.execute(query.order_by(_REPORTS.c.period_start, _REPORTS.c.meter, _REPORTS.c.slice))
    return [_report(row) for row in rows]


async def itemised_since(
    conn: AsyncConnection, account_id: str, customer_id: str, since: datetime
) -> list[rules.UsageReport]:
    """Return the slices of a customer that were left to invoice items since an instant."""
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
    """Return a slice; None if there is none of that id."""
    query = sa.select(*_COLUMNS).where(_REPORTS.c.account_id == account_id, _REPORTS.c.report_id == report_id)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else _report(row)


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
