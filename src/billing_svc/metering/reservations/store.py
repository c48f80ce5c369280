"""Reservations in Postgres.

A transaction that changes a reservation holds the lock of its counter; updates check the state all the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import holds
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.platform.database import bulk, direct, select_list, tables

_RESERVATIONS = tables.reservations

_OF_SENT = {"meter": "r.sent_meter", "operation": "r.sent_operation", "quantity": "r.sent_quantity"}
_FOUND = select_list.SelectList()
_RESERVATION = _FOUND.add_fields(holds.Reservation, "r", without=("sent", "state", "first"))
_SENT = _FOUND.add_fields(holds.SentHold, "r", **_OF_SENT)
_STATE = _FOUND.add("r.state")
_FIRST = _FOUND.add_fields(holds.FirstAnswer, "r")
_PLAN, _REASON = _FOUND.index("r.plan"), _FOUND.index("r.reason")
_FIND = """
    SELECT {found}
      FROM {asked}
     CROSS JOIN LATERAL (
           SELECT * FROM reservations WHERE (account_id, {id}) = (asked.account_id, asked.{id}) OFFSET 0
           ) AS r
"""


def _finding(key: str) -> direct.PreparedStatement:
    asked = bulk.arrays("asked", f"account_id text, {key} text")
    return direct.PreparedStatement(_FIND.format(found=_FOUND, asked=asked, id=key))


_FIND_BY_ID = _finding("reservation_id")
_FIND_BY_REQUEST = _finding("request_id")

_COLUMNS = (
    *("account_id", "reservation_id", "request_id", "meter", "period_start", "units"),
    *("sent_meter", "sent_operation", "sent_quantity", "state", "created_at", "expires_at", "caller"),
    *(_FIRST_COLUMNS := select_list.field_names(holds.FirstAnswer)),
)
_first_values = attrgetter(*_FIRST_COLUMNS)
_INSERT = direct.PreparedStatement(bulk.insert(_RESERVATIONS, _COLUMNS))

_CLOSING = ("account_id", "reservation_id", "state", "event_id")
_CLOSE = direct.PreparedStatement(f"""
    UPDATE reservations r
       SET state = new.state, event_id = new.event_id, closed_at = :now
      FROM {bulk.arrays("new", ", ".join(f"{name} text" for name in _CLOSING))}
     WHERE (r.account_id, r.reservation_id) = (new.account_id, new.reservation_id) AND r.state = 'held'
    RETURNING r.reservation_id
""")  # noqa: S608 - constants of this file

_COUNTER_KEY = ("account_id", "meter", "period_start")
_EXPIRE = direct.PreparedStatement(f"""
    UPDATE reservations r
       SET state = 'expired', closed_at = :now
      FROM {bulk.arrays("counter", "account_id text, meter text, period_start timestamptz")}
     WHERE (r.account_id, r.meter, r.period_start) = (counter.account_id, counter.meter, counter.period_start)
       AND r.state = 'held' AND r.expires_at <= :now
    RETURNING r.account_id, r.meter, r.period_start, r.units
""")  # noqa: S608 - as above


def finding(keys: Collection[tuple[str, str]]) -> direct.Call:
    """Return the call that looks reservations up by (account, reservation id)."""
    return _FIND_BY_ID, bulk.to_arrays(("account_id", "reservation_id"), keys)


def by_id(rows: Sequence[direct.Row]) -> dict[tuple[str, str], holds.Reservation]:
    """Return the reservations, by (account, reservation id), in the rows that `finding` fetched."""
    return {(one.account_id, one.reservation_id): one for one in map(_to_reservation, rows)}


def finding_by_request(keys: Collection[tuple[str, str]]) -> direct.Call:
    """Return the call that looks reservations up by (account, request id)."""
    return _FIND_BY_REQUEST, bulk.to_arrays(("account_id", "request_id"), keys)


def by_request(rows: Sequence[direct.Row]) -> dict[tuple[str, str], holds.Reservation]:
    """Return the reservations, by (account, request id), in the rows that `finding_by_request` fetched."""
    return {(one.account_id, one.request_id): one for one in map(_to_reservation, rows)}


def insertion(reservations: Sequence[tuple[holds.Reservation, str]]) -> direct.Call:
    """Return the call that stores new reservations with their callers, and fails if a request id is taken."""
    rows = [
        (
            *(one.account_id, one.reservation_id, one.request_id, one.meter, one.period_start, one.units),
            *(one.sent.meter, one.sent.operation, one.sent.quantity, one.state.value, one.created_at),
            *(one.expires_at, caller, *_first_values(one.first)),
        )
        # In the order of the unique key, so that processes cannot deadlock.
        for one, caller in sorted(reservations, key=lambda pair: (pair[0].account_id, pair[0].request_id))
    ]
    return _INSERT, bulk.to_columns(_COLUMNS, rows)


async def close(
    conn: AsyncConnection, closings: Sequence[tuple[holds.Reservation, holds.HoldState, str | None]], now: datetime
) -> int:
    """Close held reservations with their new state and the event that settled them; returns how many were held.

    Their units go back to their counters, which are locked.
    """
    rows = [(one.account_id, one.reservation_id, state.value, event_id) for one, state, event_id in closings]
    values: dict[str, direct.Value] = {**bulk.to_arrays(_CLOSING, rows), "now": now}
    back: dict[counters_store.CounterKey, int] = {}
    for one, _, _ in closings:
        back[one.counter_key] = back.get(one.counter_key, 0) - one.units
    closed, _ = await direct.fetch_each(conn, (_CLOSE, values), counters_store.adding_reserved(back, now))
    return len(closed)


async def expire(
    conn: AsyncConnection, counters: Collection[counters_store.CounterKey], now: datetime
) -> dict[counters_store.CounterKey, int]:
    """Close the holds of locked counters whose time is over; returns the units that each counter gets back."""
    rows = await direct.fetch(conn, _EXPIRE, {**bulk.to_arrays(_COUNTER_KEY, sorted(counters)), "now": now})
    back: dict[counters_store.CounterKey, int] = {}
    for *key, units in rows:
        account_id, meter, period_start = key
        back[account_id, meter, period_start] = back.get((account_id, meter, period_start), 0) + units
    return back


async def count_held(conn: AsyncConnection, account_id: str, now: datetime) -> int:
    """Return how many reservations of an account are held now."""
    reservation = _RESERVATIONS.c
    query = sa.select(sa.func.count()).where(
        reservation.account_id == account_id, reservation.state == "held", reservation.expires_at > now
    )
    return int((await conn.execute(query)).scalar_one())


async def overdue_counters(conn: AsyncConnection, most: int, now: datetime) -> list[counters_store.CounterKey]:
    """Return counters that still include units of expired reservations."""
    overdue = (
        sa.select(_RESERVATIONS.c.account_id, _RESERVATIONS.c.meter, _RESERVATIONS.c.period_start)
        .where(_RESERVATIONS.c.state == "held", _RESERVATIONS.c.expires_at <= now)
        .order_by(_RESERVATIONS.c.expires_at)
        .limit(most)
        .subquery()
    )
    return [tuple(row) for row in await conn.execute(sa.select(overdue).distinct())]


def _to_reservation(row: direct.Row) -> holds.Reservation:
    first = None
    if row[_PLAN] is not None:
        first = replace(holds.FirstAnswer(*row[_FIRST]), reason=quota_rules.Reason(row[_REASON]))
    values = *row[_RESERVATION], holds.SentHold(*row[_SENT]), holds.HoldState(row[_STATE]), first
    return holds.Reservation(*values)
