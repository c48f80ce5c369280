"""Counters in Postgres. Every function takes a batch and costs one round trip for all of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import terms
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.database import bulk, direct, tables, transactions

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
        """Return a counter as it is made, at zero."""
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
    """A counter as it is to be written, with the terms that it is kept under from now on."""

    counter: quota_rules.Counter
    under: terms.EffectiveTerms
    allowance: terms.Allowance


_COUNTER_COLUMNS = (
    *("account_id", "meter", "period_start", "used", "level", "billable", "exceeded_at"),
    *("period_end", "catalog_version", "plan", "subscription_id", "quantity", "pay_as_you_go", "included"),
    *("overridden", "updated_at"),
)
_INSERT_COUNTERS = direct.PreparedStatement(bulk.insert(tables.usage_counters, _COUNTER_COLUMNS))
# The rows are there, and locked. By way of the key's conflict, because an UPDATE that joins many rows may be planned to
# begin with all counters.
_UPDATE_COUNTERS = direct.PreparedStatement(
    f"{bulk.insert(tables.usage_counters, _COUNTER_COLUMNS)} ON CONFLICT (account_id, meter, period_start) DO UPDATE"
    f" SET {', '.join(f'{name} = excluded.{name}' for name in _COUNTER_COLUMNS[3:])}"
)
_ASKED_COUNTERS = bulk.arrays("asked", "account_id text, meter text, period_start timestamptz")
# One after the other in the order asked, which is that of the keys, so that processes cannot deadlock.
_LOCK = f"""
    SELECT c.account_id, c.meter, c.period_start, c.used, c.reserved, c.billable, c.exceeded_at,
           c.period_end, c.catalog_version, c.plan, c.quantity, c.pay_as_you_go,
           c.included, c.overridden
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
    return to_counters(await direct.fetch(conn, _LOCK_COUNTERS, bulk.to_arrays(_COUNTER_COLUMNS[:3], sorted(keys))))


def locking(since: Mapping[tuple[str, str], datetime]) -> direct.Call:
    """Return what locks, in key order, the counters of each (account, meter) whose periods began since some instant."""
    rows = [(*key, since[key]) for key in sorted(since)]
    return _LOCK_COUNTERS_SINCE, bulk.to_arrays(_COUNTER_COLUMNS[:3], rows)


def to_counters(rows: Sequence[direct.Row]) -> dict[CounterKey, LockedCounter]:
    """Return what `locking` found, as it is now."""
    return {row[:3]: LockedCounter(quota_rules.Counter(*row[3:7]), *row[7:]) for row in rows}


async def open_counters(
    conn: AsyncConnection,
    opened: Mapping[CounterKey, tuple[terms.EffectiveTerms, terms.Allowance]],
    unknown: Collection[str],
    now: datetime,
) -> dict[CounterKey, LockedCounter]:
    """Create counters at zero under their terms, and accounts that nobody knows; after all locks of what exists.

    Raises RetryTransaction if another transaction created one of them meanwhile.
    """
    written = {key: CounterUpdate(quota_rules.Counter(), *terms) for key, terms in opened.items()}
    try:
        await direct.fetch_each(conn, *insertions(written, unknown, now))
    except psycopg.errors.UniqueViolation as error:
        raise transactions.RetryTransaction from error
    return {key: LockedCounter.opened(*terms) for key, terms in opened.items()}


def updating(counters: Mapping[CounterKey, CounterUpdate], now: datetime) -> direct.Call:
    """Return what writes the totals of locked counters, and the terms that they are kept under from now on."""
    return _UPDATE_COUNTERS, _rows(counters, now)


async def update_counters(conn: AsyncConnection, counters: Mapping[CounterKey, CounterUpdate], now: datetime) -> None:
    """Write the totals of locked counters, and the terms that they are kept under from now on."""
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


def insertions(
    opened: Mapping[CounterKey, CounterUpdate], unknown: Collection[str], now: datetime
) -> list[direct.Call]:
    """Return what inserts accounts and counters, each in key order so that processes cannot deadlock."""
    calls: list[direct.Call] = []
    if unknown:
        calls.append(accounts_store.creation(unknown, now))
    if opened:
        calls.append((_INSERT_COUNTERS, _rows(opened, now)))
    return calls


def _rows(counters: Mapping[CounterKey, CounterUpdate], now: datetime) -> dict[str, str]:
    rows: list[tuple[Any, ...]] = []
    for key, one in counters.items():
        counter, under, allowance = one.counter, one.under, one.allowance
        rows.append(
            (
                *(*key, counter.used, counter.level, counter.billable, counter.exceeded_at),
                *(under.period.end, under.catalog_version, under.plan.key, under.billed_under),
                *(under.quantity, under.pay_as_you_go, allowance.included, allowance.overridden, now),
            )
        )
    return bulk.to_columns(_COUNTER_COLUMNS, sorted(rows))


_ADD_RESERVED = sa.text("""
    UPDATE usage_counters c
       SET reserved = c.reserved + change.units, updated_at = :now
      FROM unnest(CAST(:account_ids AS text[]), CAST(:meters AS text[]), CAST(:starts AS timestamptz[]),
                  CAST(:units AS bigint[])) AS change (account_id, meter, period_start, units)
     WHERE (c.account_id, c.meter, c.period_start) = (change.account_id, change.meter, change.period_start)
""")


async def add_reserved(conn: AsyncConnection, changes: Mapping[CounterKey, int], now: datetime) -> None:
    """Change what locked counters hold; negative to give back."""
    await conn.execute(
        _ADD_RESERVED,
        {
            "now": now,
            "account_ids": [key[0] for key in changes],
            "meters": [key[1] for key in changes],
            "starts": [key[2] for key in changes],
            "units": list(changes.values()),
        },
    )
