"""Usage events and counters in Postgres. Every function takes a batch and costs one round trip for all of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.quota import holds as reservations_rules
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import terms
from billing_svc.metering.usage import rules
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.database import bulk, direct, tables, transactions

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
    def opened(cls, under: terms.Terms, allowance: terms.Allowance) -> "LockedCounter":
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
class Written:
    """A counter as it is to be written, with the terms that it is kept under from now on."""

    counter: quota_rules.Counter
    under: terms.Terms
    allowance: terms.Allowance


@dataclass(slots=True)
class StoredEvent:
    """An event with the answer that it was given."""

    event: rules.NewEvent
    occurred_at: datetime
    recorded_at: datetime
    recorded: rules.Recorded


_COUNTER_COLUMNS = (
    *("account_id", "meter", "period_start", "used", "level", "billable", "exceeded_at"),
    *("period_end", "catalog_version", "plan", "subscription_id", "quantity", "pay_as_you_go", "included"),
    *("overridden", "updated_at"),
)
_EVENT_COLUMNS = (
    *("account_id", "event_id"),
    *("sent_meter", "sent_operation", "sent_quantity", "sent_level", "sent_occurred_at", "properties"),
    *("meter", "period_start", "units", "billable", "occurred_at", "recorded_at", "retry_attempt"),
    *("reservation_id", "reservation_outcome", "caller", "request_id", "period_end", "plan", "catalog_version"),
    *("used_after", "reserved_after", "billable_after", "remaining_after", "included", "overridden"),
    *("reason", "superseded"),
)
_INSERT_EVENTS = direct.Statement(bulk.insert(tables.usage_events, _EVENT_COLUMNS))
_INSERT_COUNTERS = direct.Statement(bulk.insert(tables.usage_counters, _COUNTER_COLUMNS))
# The rows are there, and locked. By way of the key's conflict, because an UPDATE that joins many rows may be planned to
# begin with all counters.
_UPDATE_COUNTERS = direct.Statement(
    f"{bulk.insert(tables.usage_counters, _COUNTER_COLUMNS)} ON CONFLICT (account_id, meter, period_start) DO UPDATE"
    f" SET {', '.join(f'{name} = excluded.{name}' for name in _COUNTER_COLUMNS[3:])}"
)

_ASKED_EVENTS = bulk.arrays("asked", "account_id text, event_id text")
_ASKED_COUNTERS = bulk.arrays("asked", "account_id text, meter text, period_start timestamptz")
_SELECT_EVENTS = direct.Statement(f"""
    SELECT e.account_id, e.event_id,
           e.sent_meter, e.sent_operation, e.sent_quantity, e.sent_level, e.sent_occurred_at, e.properties,
           e.meter, e.units, e.billable, e.period_start, e.period_end, e.plan,
           e.catalog_version, e.used_after, e.reserved_after, e.billable_after, e.remaining_after,
           e.included, e.overridden, e.reason, e.superseded, e.reservation_outcome
      FROM {_ASKED_EVENTS}
     CROSS JOIN LATERAL (
           SELECT * FROM usage_events e
            WHERE (e.account_id, e.event_id) = (asked.account_id, asked.event_id) OFFSET 0
           ) AS e
""")  # noqa: S608 - constants of this file

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
_LOCK_COUNTERS = direct.Statement(_LOCK.format("="))
_LOCK_COUNTERS_SINCE = direct.Statement(_LOCK.format(">="))


async def find_events(
    conn: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], tuple[rules.Sent, rules.Recorded]]:
    """Return what was sent and what was answered for each (account, event id) that is stored."""
    return to_events((await direct.fetch_each(conn, finding(keys)))[0])


def finding(keys: Collection[tuple[str, str]]) -> direct.Call:
    """Return what looks events up by (account, event id)."""
    return _SELECT_EVENTS, bulk.to_arrays(_EVENT_COLUMNS[:2], keys)


def to_events(rows: Sequence[direct.Row]) -> dict[tuple[str, str], tuple[rules.Sent, rules.Recorded]]:
    """Return what `finding` found."""
    return {row[:2]: (rules.Sent(*row[2:8]), _to_recorded(*row[8:])) for row in rows}


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
    opened: Mapping[CounterKey, tuple[terms.Terms, terms.Allowance]],
    unknown: Collection[str],
    now: datetime,
) -> dict[CounterKey, LockedCounter]:
    """Create counters at zero under their terms, and accounts that nobody knows; after all locks of what exists.

    Raises RetryTransaction if another transaction created one of them meanwhile.
    """
    written = {key: Written(quota_rules.Counter(), *terms) for key, terms in opened.items()}
    try:
        await direct.fetch_each(conn, *_insertions(written, unknown, now))
    except psycopg.errors.UniqueViolation as error:
        raise transactions.RetryTransaction from error
    return {key: LockedCounter.opened(*terms) for key, terms in opened.items()}


async def update_counters(conn: AsyncConnection, counters: Mapping[CounterKey, Written], now: datetime) -> None:
    """Write the totals of locked counters, and the terms that they are kept under from now on."""
    await direct.fetch(conn, _UPDATE_COUNTERS, _counter_rows(counters, now))


def write(
    conn: AsyncConnection,
    events: Sequence[StoredEvent],
    counters: Mapping[CounterKey, Written],
    opened: Mapping[CounterKey, Written],
    unknown: Collection[str],
    now: datetime,
) -> None:
    """Insert events, the counters that they open and the accounts that nobody knew, and update locked counters.

    All of it together with COMMIT, in one round trip.
    """
    calls = _insertions(opened, unknown, now)
    if counters:
        calls.append((_UPDATE_COUNTERS, _counter_rows(counters, now)))
    rows = sorted(map(_event_row, events))
    direct.defer(conn, *calls, (_INSERT_EVENTS, bulk.to_columns(_EVENT_COLUMNS, rows)))


def _insertions(opened: Mapping[CounterKey, Written], unknown: Collection[str], now: datetime) -> list[direct.Call]:
    """Return what inserts accounts and counters, each in key order so that processes cannot deadlock."""
    calls: list[direct.Call] = []
    if unknown:
        calls.append(accounts_store.creation(unknown, now))
    if opened:
        calls.append((_INSERT_COUNTERS, _counter_rows(opened, now)))
    return calls


def _to_recorded(*columns: Any) -> rules.Recorded:  # noqa: ANN401 - of `_SELECT_EVENTS`
    *plain, reason, superseded, outcome = columns
    plain += quota_rules.Reason(reason), superseded, reservations_rules.Outcome(outcome) if outcome else None
    return rules.Recorded(*plain)


def _counter_rows(counters: Mapping[CounterKey, Written], now: datetime) -> dict[str, str]:
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


def _event_row(stored: StoredEvent) -> tuple[Any, ...]:
    """Return the values of `_EVENT_COLUMNS`, the key first."""
    event, sent, recorded = stored.event, stored.event.sent, stored.recorded
    outcome = recorded.reservation_outcome
    return (
        *(event.account_id, event.event_id),
        *(sent.meter, sent.operation, sent.quantity, sent.level, sent.occurred_at, sent.properties),
        *(recorded.meter, recorded.period_start, recorded.units, recorded.billable),
        *(stored.occurred_at, stored.recorded_at, event.retry_attempt),
        *(event.reservation_id or None, outcome.value if outcome else None),
        *(event.caller, event.request_id, recorded.period_end, recorded.plan, recorded.catalog_version),
        *(recorded.used, recorded.reserved, recorded.total_billable, recorded.remaining),
        *(recorded.included, recorded.overridden, recorded.reason.value, recorded.superseded),
    )
