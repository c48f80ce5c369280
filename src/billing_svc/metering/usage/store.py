"""Usage events in Postgres. Every function takes a batch and costs one round trip."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import holds
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.usage import rules
from billing_svc.platform.database import bulk, direct, select_list, tables


@dataclass(slots=True)
class StoredEvent:
    """An event with the answer that it was given."""

    event: rules.NewEvent
    occurred_at: datetime
    recorded_at: datetime
    recorded: rules.RecordedEvent
    held: rules.HeldPart | None = None


# The columns of an event, each with the attribute that it is written from and read into.
_KEY_COLUMNS = ("account_id", "event_id")
_OF_SENT = {
    "sent_meter": "meter",
    "sent_operation": "operation",
    "sent_quantity": "quantity",
    "sent_level": "level",
    "sent_occurred_at": "occurred_at",
    "properties": "properties",
}
_OF_RECORDED = {
    "used_after": "used",
    "reserved_after": "reserved",
    "billable_after": "total_billable",
    "remaining_after": "remaining",
} | {
    name: name
    for name in select_list.field_names(
        rules.RecordedEvent, without=("used", "reserved", "total_billable", "remaining")
    )
}
_OF_EVENT = {name: name for name in ("retry_attempt", "caller", "request_id")}
_OF_STORED = {name: name for name in ("occurred_at", "recorded_at")}
_OF_HELD = {"held_plan": "plan", "held_catalog_version": "catalog_version", "held_billable": "billable"}
_EVENT_COLUMNS = (*_KEY_COLUMNS, *_OF_SENT, *_OF_RECORDED, *_OF_EVENT, *_OF_STORED, "reservation_id")
_HELD_EVENT_COLUMNS = (*_EVENT_COLUMNS, *_OF_HELD)
_sent_values = attrgetter(*_OF_SENT.values())
_recorded_values = attrgetter(*_OF_RECORDED.values())
_event_values = attrgetter(*_OF_EVENT.values())
_stored_values = attrgetter(*_OF_STORED.values())
_held_values = attrgetter(*_OF_HELD.values())
_NOT_HELD = (None,) * len(_OF_HELD)
_INSERT_EVENTS = direct.PreparedStatement(bulk.insert(tables.usage_events, _EVENT_COLUMNS))
# Few batches settle a hold whose terms have changed; the others do without its columns.
_INSERT_HELD_EVENTS = direct.PreparedStatement(bulk.insert(tables.usage_events, _HELD_EVENT_COLUMNS))

_ASKED_EVENTS = bulk.arrays("asked", "account_id text, event_id text")
_EVENT = select_list.SelectList()
_KEY = _EVENT.add_all("e.account_id", "e.event_id")
_SENT = _EVENT.add_fields(rules.SentEvent, "e", **{field: f"e.{column}" for column, field in _OF_SENT.items()})
_RECORDED = _EVENT.add_fields(
    rules.RecordedEvent, "e", **{field: f"e.{column}" for column, field in _OF_RECORDED.items()}
)
_SELECT_EVENTS = direct.PreparedStatement(f"""
    SELECT {_EVENT}
      FROM {_ASKED_EVENTS}
     CROSS JOIN LATERAL (
           SELECT * FROM usage_events e
            WHERE (e.account_id, e.event_id) = (asked.account_id, asked.event_id) OFFSET 0
           ) AS e
""")  # noqa: S608 - constants of this file


def finding(keys: Collection[tuple[str, str]]) -> direct.Call:
    """Return the call that looks events up by (account, event id)."""
    return _SELECT_EVENTS, bulk.to_arrays(_KEY_COLUMNS, keys)


def to_events(rows: Sequence[direct.Row]) -> dict[tuple[str, str], tuple[rules.SentEvent, rules.RecordedEvent]]:
    """Return events as sent and their answers, from the rows that `finding` fetched."""
    return {row[_KEY]: (rules.SentEvent(*row[_SENT]), _to_recorded(row[_RECORDED])) for row in rows}


def write(
    conn: AsyncConnection,
    events: Sequence[StoredEvent],
    counters: Mapping[counters_store.CounterKey, counters_store.CounterUpdate],
    opened: Mapping[counters_store.CounterKey, counters_store.CounterUpdate],
    unknown: Collection[str],
    now: datetime,
) -> None:
    """Insert events, new counters and unknown accounts, and update locked counters.

    All statements travel with COMMIT, in one round trip.
    """
    calls = counters_store.insertions(opened, unknown, now)
    if counters:
        calls.append(counters_store.updating(counters, now))
    direct.defer(conn, *calls, _insertion(sorted(events, key=attrgetter("event.key"))))


def _insertion(events: Sequence[StoredEvent]) -> direct.Call:
    if all(one.held is None for one in events):
        return _INSERT_EVENTS, bulk.to_columns(_EVENT_COLUMNS, [_event_row(one) for one in events])
    rows = [(*_event_row(one), *(_NOT_HELD if one.held is None else _held_values(one.held))) for one in events]
    return _INSERT_HELD_EVENTS, bulk.to_columns(_HELD_EVENT_COLUMNS, rows)


def _to_recorded(values: Sequence[Any]) -> rules.RecordedEvent:
    recorded = rules.RecordedEvent(*values)
    outcome = recorded.reservation_outcome
    return replace(
        recorded,
        reason=quota_rules.Reason(recorded.reason),
        reservation_outcome=holds.SettlementOutcome(outcome) if outcome else None,
    )


def _event_row(stored: StoredEvent) -> tuple[Any, ...]:
    """Return the values of `_EVENT_COLUMNS`, the key first."""
    event = stored.event
    return (
        *event.key,
        *_sent_values(event.sent),
        *_recorded_values(stored.recorded),
        *_event_values(event),
        *_stored_values(stored),
        event.reservation_id or None,
    )
