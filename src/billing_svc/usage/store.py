"""Usage events and counters in Postgres. Every function takes a batch and costs one statement for all of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.database import bulk, tables
from billing_svc.quota import rules as quota_rules
from billing_svc.quota import terms
from billing_svc.reservations import rules as reservations_rules
from billing_svc.usage import rules

# Account, meter, start of the period.
CounterKey: TypeAlias = tuple[str, str, datetime]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Written:
    """A counter as it is to be written, with the terms that it is kept under from now on."""

    counter: quota_rules.Counter
    under: terms.Terms
    allowance: terms.Allowance


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with the answer that it was given."""

    event: rules.NewEvent
    occurred_at: datetime
    recorded_at: datetime
    recorded: rules.Recorded


_ZERO = {"used": 0, "reserved": 0, "billable": 0, "sealed": 0}
_INSERT_COUNTERS = bulk.insert_missing(
    tables.usage_counters,
    (
        *("account_id", "meter", "period_start", "period_end", *_ZERO),
        *("catalog_version", "plan", "subscription_id", "quantity", "pay_as_you_go", "included", "overridden"),
        "updated_at",
    ),
)

_INSERT_EVENTS = bulk.insert_missing(
    tables.usage_events,
    (
        *("account_id", "event_id"),
        *("sent_meter", "sent_operation", "sent_quantity", "sent_level", "sent_occurred_at", "properties"),
        *("meter", "period_start", "units", "billable", "occurred_at", "recorded_at", "retry_attempt"),
        *("reservation_id", "reservation_outcome", "caller", "request_id", "period_end", "plan", "catalog_version"),
        *("used_after", "reserved_after", "billable_after", "remaining_after", "included", "overridden"),
        *("reason", "superseded"),
    ),
    returning="event_id",
)

_COUNTER_KEY = "account_id text, meter text, period_start timestamptz"
_ASKED_EVENTS = bulk.recordset("asked", "account_id text, event_id text")
_ASKED_COUNTERS = bulk.recordset("asked", _COUNTER_KEY)
_NEW_COUNTERS = bulk.recordset(
    "new",
    f"{_COUNTER_KEY}, used bigint, level bigint, billable bigint, exceeded_at timestamptz, period_end timestamptz,"
    " catalog_version integer, plan text, subscription_id text, quantity bigint, pay_as_you_go boolean,"
    " included bigint, overridden boolean",
    parameter="counters",
)

_SELECT_EVENTS = sa.text(f"""
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
_LOCK_COUNTERS = sa.text(f"""
    SELECT c.account_id, c.meter, c.period_start, c.used, c.reserved, c.billable, c.exceeded_at,
           c.period_end, c.catalog_version, c.plan, c.quantity, c.pay_as_you_go,
           c.included, c.overridden
      FROM {_ASKED_COUNTERS}
     CROSS JOIN LATERAL (
           SELECT * FROM usage_counters c
            WHERE (c.account_id, c.meter, c.period_start) = (asked.account_id, asked.meter, asked.period_start)
              FOR UPDATE
           ) AS c
""")  # noqa: S608 - constants of this file

# By way of the key's conflict, because an UPDATE that joins many rows may be planned to begin with all counters. The
# rows are there, and locked.
_UPDATE = f"""
    INSERT INTO usage_counters AS c
           (account_id, meter, period_start, period_end, used, level, billable, exceeded_at,
            catalog_version, plan, subscription_id, quantity, pay_as_you_go, included, overridden, updated_at)
    SELECT account_id, meter, period_start, period_end, used, level, billable, exceeded_at,
           catalog_version, plan, subscription_id, quantity, pay_as_you_go, included, overridden,
           CAST(:now AS timestamptz)
      FROM {_NEW_COUNTERS}
        ON CONFLICT (account_id, meter, period_start) DO UPDATE
       SET used = excluded.used, billable = excluded.billable, exceeded_at = excluded.exceeded_at,
           level = excluded.level, period_end = excluded.period_end, catalog_version = excluded.catalog_version,
           plan = excluded.plan, subscription_id = excluded.subscription_id, quantity = excluded.quantity,
           pay_as_you_go = excluded.pay_as_you_go, included = excluded.included, overridden = excluded.overridden,
           updated_at = excluded.updated_at
"""  # noqa: S608 - constants of this file
_UPDATE_COUNTERS = sa.text(_UPDATE)
# Two writes that do not meet: joining them would cost the square of the batch.
_WRITE = sa.text(f"WITH updated AS ({_UPDATE}) {_INSERT_EVENTS}")


async def find_events(
    conn: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], tuple[rules.Sent, rules.Recorded]]:
    """Return what was sent and what was answered for each (account, event id) that is stored."""
    rows = await conn.execute(
        _SELECT_EVENTS,
        bulk.to_rows([{"account_id": account_id, "event_id": event_id} for account_id, event_id in keys]),
    )
    return {
        (row.account_id, row.event_id): (
            rules.Sent(
                meter=row.sent_meter,
                operation=row.sent_operation,
                quantity=row.sent_quantity,
                level=row.sent_level,
                occurred_at=row.sent_occurred_at,
                properties=row.properties,
            ),
            rules.Recorded(
                meter=row.meter,
                units=row.units,
                billable=row.billable,
                period_start=row.period_start,
                period_end=row.period_end,
                plan=row.plan,
                catalog_version=row.catalog_version,
                used=row.used_after,
                reserved=row.reserved_after,
                total_billable=row.billable_after,
                remaining=row.remaining_after,
                included=row.included,
                overridden=row.overridden,
                reason=quota_rules.Reason(row.reason),
                superseded=row.superseded,
                reservation_outcome=reservations_rules.Outcome(row.reservation_outcome)
                if row.reservation_outcome
                else None,
            ),
        )
        for row in rows
    }


async def insert_counters(
    conn: AsyncConnection, missing: Mapping[CounterKey, tuple[terms.Terms, terms.Allowance]], now: datetime
) -> None:
    """Create counters at zero under their terms; one that another process made meanwhile stays as it is."""
    rows = [
        {
            **_counter_key(key),
            "updated_at": now,
            **_ZERO,
            **_terms_columns(under, allowance),
        }
        for key, (under, allowance) in sorted(missing.items(), key=lambda item: item[0])
    ]
    await conn.execute(_INSERT_COUNTERS, bulk.to_rows(rows))


async def lock_counters(conn: AsyncConnection, keys: Collection[CounterKey]) -> dict[CounterKey, LockedCounter]:
    """Lock counters until the end of the transaction, in key order, and return them as they are now."""
    rows = await conn.execute(
        _LOCK_COUNTERS,
        bulk.to_rows([_counter_key(key) for key in sorted(keys)]),
    )
    return {
        (account_id, meter, start): LockedCounter(
            quota_rules.Counter(used, reserved, billable, exceeded_at), *terms_columns
        )
        for account_id, meter, start, used, reserved, billable, exceeded_at, *terms_columns in rows
    }


async def update_counters(conn: AsyncConnection, counters: Mapping[CounterKey, Written], now: datetime) -> None:
    """Write the totals of locked counters, and the terms that they are kept under from now on."""
    await conn.execute(_UPDATE_COUNTERS, _counter_rows(counters, now))


async def write(
    conn: AsyncConnection, events: Sequence[StoredEvent], counters: Mapping[CounterKey, Written], now: datetime
) -> int:
    """Insert events in key order and update their locked counters, in one statement.

    Returns how many events were new; the others' ids were stored by someone else first, and all of this must be undone.
    """
    rows = [_event_row(stored) for stored in sorted(events, key=lambda one: one.event.key)]
    return len((await conn.execute(_WRITE, {**bulk.to_rows(rows), **_counter_rows(counters, now)})).all())


def _counter_rows(counters: Mapping[CounterKey, Written], now: datetime) -> dict[str, object]:
    rows = [
        {
            **_counter_key(key),
            "used": one.counter.used,
            "level": one.counter.level,
            "billable": one.counter.billable,
            "exceeded_at": one.counter.exceeded_at,
            **_terms_columns(one.under, one.allowance),
        }
        for key, one in counters.items()
    ]
    return {"now": now, **bulk.to_rows(rows, "counters")}


def _counter_key(key: CounterKey) -> dict[str, object]:
    return {"account_id": key[0], "meter": key[1], "period_start": key[2]}


def _terms_columns(under: terms.Terms, allowance: terms.Allowance) -> dict[str, object]:
    return {
        "period_end": under.period.end,
        "catalog_version": under.catalog_version,
        "plan": under.plan.key,
        "subscription_id": under.subscription.subscription_id if under.subscription else None,
        "quantity": under.quantity,
        "pay_as_you_go": under.pay_as_you_go,
        "included": allowance.included,
        "overridden": allowance.overridden,
    }


def _event_row(stored: StoredEvent) -> dict[str, object]:
    event, recorded = stored.event, stored.recorded
    return {
        "account_id": event.account_id,
        "event_id": event.event_id,
        "sent_meter": event.sent.meter,
        "sent_operation": event.sent.operation,
        "sent_quantity": event.sent.quantity,
        "sent_level": event.sent.level,
        "sent_occurred_at": event.sent.occurred_at,
        "properties": dict(event.sent.properties),
        "meter": recorded.meter,
        "period_start": recorded.period_start,
        "units": recorded.units,
        "billable": recorded.billable,
        "occurred_at": stored.occurred_at,
        "recorded_at": stored.recorded_at,
        "retry_attempt": event.retry_attempt,
        "caller": event.caller,
        "request_id": event.request_id,
        "period_end": recorded.period_end,
        "plan": recorded.plan,
        "catalog_version": recorded.catalog_version,
        "used_after": recorded.used,
        "reserved_after": recorded.reserved,
        "billable_after": recorded.total_billable,
        "remaining_after": recorded.remaining,
        "included": recorded.included,
        "overridden": recorded.overridden,
        "reason": recorded.reason.value,
        "superseded": recorded.superseded,
        "reservation_id": event.reservation_id or None,
        "reservation_outcome": recorded.reservation_outcome.value if recorded.reservation_outcome else None,
    }
