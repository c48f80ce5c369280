"""Counters in Postgres. Every function takes a batch and costs one round trip."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import TypeAlias

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import terms
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.database import bulk, direct, select_list, tables, transactions

_COUNTERS = tables.usage_counters

# Account, meter, start of the period.
CounterKey: TypeAlias = tuple[str, str, datetime]


@dataclass(slots=True)
class LockedCounter:
    """A counter whose row this transaction holds, with the terms that it was last written under."""

    counter: quota_rules.Counter
    period_end: datetime
    catalog_version: int
    plan: str
    quantity: int
    pay_as_you_go: bool
    included: int | None
    overridden: bool

    @classmethod
    def opened(cls, under: terms.EffectiveTerms, allowance: terms.Allowance) -> "LockedCounter":
        """Return a new counter, at zero."""
        return cls(
            counter=quota_rules.Counter(),
            period_end=under.period.end,
            catalog_version=under.catalog_version,
            plan=under.plan.key,
            quantity=under.quantity,
            pay_as_you_go=under.pay_as_you_go,
            included=allowance.included,
            overridden=allowance.overridden,
        )


@dataclass(slots=True)
class CounterUpdate:
    """The totals to write to a counter, and the terms to store with them."""

    counter: quota_rules.Counter
    under: terms.EffectiveTerms
    allowance: terms.Allowance


_KEY_COLUMNS = ("account_id", "meter", "period_start")
# The columns that a batch writes, each with its attribute of `CounterUpdate`. `adding_reserved` writes the holds.
_OF_COUNTER = {name: name for name in ("used", "level", "billable", "exceeded_at")}
_OF_TERMS = {
    "period_end": "period.end",
    "catalog_version": "catalog_version",
    "plan": "plan.key",
    "subscription_id": "billed_under",
    "quantity": "quantity",
    "pay_as_you_go": "pay_as_you_go",
}
_OF_ALLOWANCE = {name: name for name in ("included", "overridden")}
_WRITTEN_COLUMNS = (*_OF_COUNTER, *_OF_TERMS, *_OF_ALLOWANCE, "updated_at")
_COUNTER_COLUMNS = (*_KEY_COLUMNS, *_WRITTEN_COLUMNS)
_counter_values = attrgetter(*_OF_COUNTER.values())
_terms_values = attrgetter(*_OF_TERMS.values())
_allowance_values = attrgetter(*_OF_ALLOWANCE.values())
_INSERT_COUNTERS = direct.PreparedStatement(bulk.insert(tables.usage_counters, _COUNTER_COLUMNS))
# The rows exist and are locked. Written by ON CONFLICT, because the planner may begin an UPDATE that joins many rows
# with a scan of all counters.
_UPDATE_COUNTERS = direct.PreparedStatement(
    f"{bulk.insert(tables.usage_counters, _COUNTER_COLUMNS)} ON CONFLICT (account_id, meter, period_start) DO UPDATE"
    f" SET {', '.join(f'{name} = excluded.{name}' for name in _WRITTEN_COLUMNS)}"
)
_ASKED_COUNTERS = bulk.arrays("asked", "account_id text, meter text, period_start timestamptz")
_LOCKED = select_list.SelectList()
_KEY = _LOCKED.add_all("c.account_id", "c.meter", "c.period_start")
# The level of a gauge is read from its row of `gauge_levels`.
_TOTALS = _LOCKED.add_fields(quota_rules.Counter, "c", without=("level",))
_TERMS = _LOCKED.add_fields(LockedCounter, "c", without=("counter",))
# Rows are locked one after the other in the order of the arrays, which callers sort by key: processes cannot deadlock.
_LOCK = f"""
    SELECT {_LOCKED}
      FROM {_ASKED_COUNTERS}
     CROSS JOIN LATERAL (
           SELECT * FROM usage_counters c
            WHERE (c.account_id, c.meter) = (asked.account_id, asked.meter) AND c.period_start {{}} asked.period_start
            ORDER BY c.period_start
              FOR UPDATE
           ) AS c
"""  # noqa: S608 - constants of this file
_LOCK_COUNTERS = direct.PreparedStatement(_LOCK.format("="))
_LOCK_COUNTERS_SINCE = direct.PreparedStatement(_LOCK.format(">="))


async def lock_counters(conn: AsyncConnection, keys: Collection[CounterKey]) -> dict[CounterKey, LockedCounter]:
    """Lock counters until the end of the transaction, in key order, and return those that exist, as they are now."""
    return to_counters(await direct.fetch(conn, _LOCK_COUNTERS, bulk.to_arrays(_KEY_COLUMNS, sorted(keys))))


def locking(since: Mapping[tuple[str, str], datetime]) -> direct.Call:
    """Return the call that locks, in key order, counters of (account, meter) whose periods began since an instant."""
    rows = [(*key, since[key]) for key in sorted(since)]
    return _LOCK_COUNTERS_SINCE, bulk.to_arrays(_KEY_COLUMNS, rows)


def to_counters(rows: Sequence[direct.Row]) -> dict[CounterKey, LockedCounter]:
    """Return the counters in the rows that `locking` fetched."""
    return {row[_KEY]: LockedCounter(quota_rules.Counter(*row[_TOTALS]), *row[_TERMS]) for row in rows}


async def open_counters(
    conn: AsyncConnection,
    opened: Mapping[CounterKey, tuple[terms.EffectiveTerms, terms.Allowance]],
    unknown: Collection[str],
    now: datetime,
) -> dict[CounterKey, LockedCounter]:
    """Create counters at zero under their terms, and the `unknown` accounts; called after all locks of existing rows.

    Raises RetryTransaction if another transaction created one of the rows meanwhile.
    """
    written = {key: CounterUpdate(quota_rules.Counter(), *terms) for key, terms in opened.items()}
    try:
        await direct.fetch_each(conn, *insertions(written, unknown, now))
    except psycopg.errors.UniqueViolation as error:
        raise transactions.RetryTransaction from error
    return {key: LockedCounter.opened(*terms) for key, terms in opened.items()}


def updating(counters: Mapping[CounterKey, CounterUpdate], now: datetime) -> direct.Call:
    """Return the call that writes the totals and the terms of locked counters."""
    return _UPDATE_COUNTERS, _rows(counters, now)


async def update_counters(conn: AsyncConnection, counters: Mapping[CounterKey, CounterUpdate], now: datetime) -> None:
    """Write the totals and the terms of locked counters."""
    await direct.fetch(conn, *updating(counters, now))


async def update_totals(conn: AsyncConnection, key: CounterKey, after: quota_rules.Counter, now: datetime) -> None:
    """Write the totals of a locked counter; the terms that it is kept under stay."""
    account_id, meter, period_start = key
    await conn.execute(
        sa.update(_COUNTERS)
        .where(
            _COUNTERS.c.account_id == account_id, _COUNTERS.c.meter == meter, _COUNTERS.c.period_start == period_start
        )
        .values(used=after.used, billable=after.billable, exceeded_at=after.exceeded_at, updated_at=now)
    )


async def end_periods(conn: AsyncConnection, account_id: str, subscription_id: str, at: datetime) -> None:
    """End at `at` the periods of a subscription's counters that contain it; the caller has locked the account."""
    await conn.execute(
        sa.text("""
            UPDATE usage_counters c
               SET period_end = :at
              FROM (SELECT account_id, meter, period_start
                      FROM usage_counters
                     WHERE account_id = :account_id AND subscription_id = :subscription_id
                       AND period_start < :at AND period_end > :at
                     ORDER BY meter, period_start
                       FOR UPDATE) AS open
             WHERE (c.account_id, c.meter, c.period_start) = (open.account_id, open.meter, open.period_start)
        """),
        {"account_id": account_id, "subscription_id": subscription_id, "at": at},
    )


def insertions(
    opened: Mapping[CounterKey, CounterUpdate], unknown: Collection[str], now: datetime
) -> list[direct.Call]:
    """Return the calls that insert accounts and counters, both in key order so that processes cannot deadlock."""
    calls: list[direct.Call] = []
    if unknown:
        calls.append(accounts_store.creation(unknown, now))
    if opened:
        calls.append((_INSERT_COUNTERS, _rows(opened, now)))
    return calls


def _rows(counters: Mapping[CounterKey, CounterUpdate], now: datetime) -> dict[str, str]:
    rows = [
        (*key, *_counter_values(one.counter), *_terms_values(one.under), *_allowance_values(one.allowance), now)
        for key, one in counters.items()
    ]
    return bulk.to_columns(_COUNTER_COLUMNS, sorted(rows))


_ADD_RESERVED = direct.PreparedStatement(f"""
    UPDATE usage_counters c
       SET reserved = c.reserved + change.units, updated_at = :now
      FROM {bulk.arrays("change", "account_id text, meter text, period_start timestamptz, units bigint")}
     WHERE (c.account_id, c.meter, c.period_start) = (change.account_id, change.meter, change.period_start)
""")  # noqa: S608 - constants of this file


def adding_reserved(changes: Mapping[CounterKey, int], now: datetime) -> direct.Call:
    """Return the call that adds to the reserved units of locked counters; a negative number gives units back."""
    rows = [(*key, units) for key, units in sorted(changes.items())]
    return _ADD_RESERVED, {**bulk.to_arrays((*_KEY_COLUMNS, "units"), rows), "now": now}
