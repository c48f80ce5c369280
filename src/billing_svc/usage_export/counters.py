"""Counters in Postgres: the queries that accrual needs."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

# Bound on the counters of an account that one transaction accrues; usually there are a few meters in two periods.
COUNTERS_MAX = 200

_COUNTERS = tables.usage_counters
_EVENTS = tables.usage_events
_UNSEALED = _COUNTERS.c.billable != _COUNTERS.c.sealed


@dataclass(frozen=True, slots=True)
class UnreportedCounter:
    """A counter with the terms of the last write to it."""

    account_id: str
    meter: str
    period_start: datetime
    period_end: datetime
    billable: int
    sealed: int
    catalog_version: int
    plan: str
    subscription_id: str | None


_COLUMNS = select_list.columns(UnreportedCounter, _COUNTERS)


async def unsealed_accounts(conn: AsyncConnection, after: str, most: int) -> list[str]:
    """Return a page of accounts that have units to accrue, sorted by id, with ids greater than `after`."""
    query = sa.select(_COUNTERS.c.account_id).distinct().where(_UNSEALED, _COUNTERS.c.account_id > after)
    return list((await conn.execute(query.order_by(_COUNTERS.c.account_id).limit(most))).scalars())


async def unsealed_accounts_of_past_periods(conn: AsyncConnection, after: str, most: int, now: datetime) -> list[str]:
    """Return accounts as `unsealed_accounts` does, but only those with units to accrue in a period that is over."""
    query = (
        sa.select(_COUNTERS.c.account_id)
        .distinct()
        .where(_UNSEALED, _COUNTERS.c.account_id > after, _COUNTERS.c.period_end <= now)
    )
    return list((await conn.execute(query.order_by(_COUNTERS.c.account_id).limit(most))).scalars())


async def lock_unsealed(conn: AsyncConnection, account_id: str) -> list[UnreportedCounter]:
    """Lock the account's counters that have units to accrue, in key order, and return them."""
    query = (
        sa.select(*_COLUMNS)
        .where(_COUNTERS.c.account_id == account_id, _UNSEALED)
        .order_by(_COUNTERS.c.meter, _COUNTERS.c.period_start)
        .limit(COUNTERS_MAX)
        .with_for_update()
    )
    return [UnreportedCounter(*row) for row in await conn.execute(query)]


async def billed(conn: AsyncConnection, account_id: str) -> list[UnreportedCounter]:
    """Return the account's counters with billable or accrued units."""
    query = (
        sa.select(*_COLUMNS)
        .where(_COUNTERS.c.account_id == account_id, sa.or_(_COUNTERS.c.billable > 0, _COUNTERS.c.sealed > 0))
        .order_by(_COUNTERS.c.period_start, _COUNTERS.c.meter)
    )
    return [UnreportedCounter(*row) for row in await conn.execute(query)]


async def find(conn: AsyncConnection, account_id: str, meter: str, period_start: datetime) -> UnreportedCounter | None:
    """Return a counter; None if there is none."""
    key = (_COUNTERS.c.account_id, _COUNTERS.c.meter, _COUNTERS.c.period_start)
    query = sa.select(*_COLUMNS).where(sa.tuple_(*key) == (account_id, meter, period_start))
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else UnreportedCounter(*row)


async def billed_accounts(conn: AsyncConnection, after: str, most: int, since: datetime) -> list[str]:
    """Return a page of accounts with billable or accrued units in periods that end after `since`, sorted by id."""
    query = (
        sa.select(_COUNTERS.c.account_id)
        .distinct()
        .where(
            _COUNTERS.c.account_id > after,
            _COUNTERS.c.period_end > since,
            sa.or_(_COUNTERS.c.billable > 0, _COUNTERS.c.sealed > 0),
        )
    )
    return list((await conn.execute(query.order_by(_COUNTERS.c.account_id).limit(most))).scalars())


async def mark_sealed(conn: AsyncConnection, counter: UnreportedCounter) -> None:
    """Write that all billable units of a locked counter are in usage reports."""
    await conn.execute(sa.update(_COUNTERS).where(*_is(counter)).values(sealed=counter.billable))


async def billed_units(conn: AsyncConnection, counter: UnreportedCounter) -> list[tuple[str, int, int]]:
    """Return each change of a counter's billable units, in order: plan, catalog version, units (negative: taken back).

    The part of an event that a hold's terms charge comes before its rest. Reads the period's events, so use it only for
    a counter that has no report yet, whose terms have changed, or that has units under the terms of holds.
    """
    query = (
        sa.select(
            *(_EVENTS.c[name] for name in ("plan", "catalog_version", "billable")),
            *(_EVENTS.c[name] for name in ("held_plan", "held_catalog_version", "held_billable")),
        )
        .where(*_events_of(counter), _EVENTS.c.billable != 0)
        .order_by(_EVENTS.c.recorded_at)
    )
    found: list[tuple[str, int, int]] = []
    for plan, version, units, held_plan, held_version, held_units in await conn.execute(query):
        if held_plan is not None:
            found.append((held_plan, held_version, held_units))
        if units != (held_units or 0):
            found.append((plan, version, units - (held_units or 0)))
    return found


async def has_terms_of_holds(conn: AsyncConnection, counter: UnreportedCounter) -> bool:
    """Say whether units of a counter are charged under the terms of holds."""
    query = sa.select(sa.exists().where(*_events_of(counter), _EVENTS.c.held_plan.is_not(None)))
    return bool(await conn.scalar(query))


async def last_billed_terms(conn: AsyncConnection, counter: UnreportedCounter) -> tuple[str, int] | None:
    """Return plan and catalog version under which units of a counter last became billable; None if no event did."""
    query = (
        sa.select(
            sa.func.coalesce(_EVENTS.c.held_plan, _EVENTS.c.plan).label("plan"),
            sa.func.coalesce(_EVENTS.c.held_catalog_version, _EVENTS.c.catalog_version).label("catalog_version"),
        )
        .where(*_events_of(counter), _EVENTS.c.billable > 0)
        .order_by(_EVENTS.c.recorded_at.desc())
        .limit(1)
    )
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else (row.plan, row.catalog_version)


def _is(counter: UnreportedCounter) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        _COUNTERS.c.account_id == counter.account_id,
        _COUNTERS.c.meter == counter.meter,
        _COUNTERS.c.period_start == counter.period_start,
    )


def _events_of(counter: UnreportedCounter) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        _EVENTS.c.account_id == counter.account_id,
        _EVENTS.c.account_id != "",  # repeats the condition of the partial index, so that Postgres can use it
        _EVENTS.c.meter == counter.meter,
        _EVENTS.c.period_start == counter.period_start,
    )
