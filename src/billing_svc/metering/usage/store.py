"""Usage events in Postgres. Every function takes a batch and costs one round trip for all of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import holds as reservations_rules
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.usage import rules
from billing_svc.platform.database import bulk, direct, tables


@dataclass(slots=True)
class StoredEvent:
    """An event with the answer that it was given."""

    event: rules.NewEvent
    occurred_at: datetime
    recorded_at: datetime
    recorded: rules.RecordedEvent


_EVENT_COLUMNS = (
    *("account_id", "event_id"),
    *("sent_meter", "sent_operation", "sent_quantity", "sent_level", "sent_occurred_at", "properties"),
    *("meter", "period_start", "units", "billable", "occurred_at", "recorded_at", "retry_attempt"),
    *("reservation_id", "reservation_outcome", "caller", "request_id", "period_end", "plan", "catalog_version"),
    *("used_after", "reserved_after", "billable_after", "remaining_after", "included", "overridden"),
    *("reason", "superseded"),
)
_INSERT_EVENTS = direct.PreparedStatement(bulk.insert(tables.usage_events, _EVENT_COLUMNS))

_ASKED_EVENTS = bulk.arrays("asked", "account_id text, event_id text")
_SELECT_EVENTS = direct.PreparedStatement(f"""
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


async def find_events(
    conn: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], tuple[rules.SentEvent, rules.RecordedEvent]]:
    """Return what was sent and what was answered for each (account, event id) that is stored."""
    return to_events((await direct.fetch_each(conn, finding(keys)))[0])


def finding(keys: Collection[tuple[str, str]]) -> direct.Call:
    """Return what looks events up by (account, event id)."""
    return _SELECT_EVENTS, bulk.to_arrays(_EVENT_COLUMNS[:2], keys)


def to_events(rows: Sequence[direct.Row]) -> dict[tuple[str, str], tuple[rules.SentEvent, rules.RecordedEvent]]:
    """Return what `finding` found."""
    return {row[:2]: (rules.SentEvent(*row[2:8]), _to_recorded(*row[8:])) for row in rows}


def write(
    conn: AsyncConnection,
    events: Sequence[StoredEvent],
    counters: Mapping[counters_store.CounterKey, counters_store.CounterUpdate],
    opened: Mapping[counters_store.CounterKey, counters_store.CounterUpdate],
    unknown: Collection[str],
    now: datetime,
) -> None:
    """Insert events, the counters that they open and the accounts that nobody knew, and update locked counters.

    All of it together with COMMIT, in one round trip.
    """
    calls = counters_store.insertions(opened, unknown, now)
    if counters:
        calls.append(counters_store.updating(counters, now))
    rows = sorted(map(_event_row, events))
    direct.defer(conn, *calls, (_INSERT_EVENTS, bulk.to_columns(_EVENT_COLUMNS, rows)))


def _to_recorded(*columns: Any) -> rules.RecordedEvent:  # noqa: ANN401 - of `_SELECT_EVENTS`
    *plain, reason, superseded, outcome = columns
    plain += quota_rules.Reason(reason), superseded, reservations_rules.SettlementOutcome(outcome) if outcome else None
    return rules.RecordedEvent(*plain)


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
