"""Reservations in Postgres.

A transaction that changes a reservation holds the lock of its counter; updates check the state all the same.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import holds
from billing_svc.platform.database import tables

_RESERVATIONS = tables.reservations

_COLUMNS = """
    r.account_id, r.reservation_id, r.request_id, r.meter, r.period_start, r.units,
    r.sent_meter, r.sent_operation, r.sent_quantity, r.state, r.expires_at
"""
_ASKED = "unnest(CAST(:account_ids AS text[]), CAST(:ids AS text[]))"
_FIND = sa.text(
    f"SELECT {_COLUMNS} FROM {_ASKED} AS asked (account_id, reservation_id)"  # noqa: S608 - constants of this file
    " JOIN reservations r USING (account_id, reservation_id)"
)
_FIND_BY_REQUEST = sa.text(
    f"SELECT {_COLUMNS} FROM {_ASKED} AS asked (account_id, request_id)"  # noqa: S608 - constants of this file
    " JOIN reservations r USING (account_id, request_id)"
)

_CLOSE = sa.text("""
    UPDATE reservations r
       SET state = new.state, event_id = new.event_id, closed_at = :now
      FROM unnest(CAST(:account_ids AS text[]), CAST(:ids AS text[]), CAST(:states AS text[]),
                  CAST(:event_ids AS text[])) AS new (account_id, reservation_id, state, event_id)
     WHERE (r.account_id, r.reservation_id) = (new.account_id, new.reservation_id) AND r.state = 'held'
""")

_EXPIRE = sa.text("""
    UPDATE reservations r
       SET state = 'expired', closed_at = :now
      FROM unnest(CAST(:account_ids AS text[]), CAST(:meters AS text[]), CAST(:starts AS timestamptz[]))
           AS counter (account_id, meter, period_start)
     WHERE (r.account_id, r.meter, r.period_start) = (counter.account_id, counter.meter, counter.period_start)
       AND r.state = 'held' AND r.expires_at <= :now
    RETURNING r.account_id, r.reservation_id, r.meter, r.period_start, r.units
""")


async def find(conn: AsyncConnection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], holds.Reservation]:
    """Return the reservations of (account, reservation id) that exist."""
    found = await _select(conn, _FIND, keys)
    return {(one.account_id, one.reservation_id): one for one in found}


async def find_by_request(
    conn: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], holds.Reservation]:
    """Return the reservations of (account, request id) that exist."""
    found = await _select(conn, _FIND_BY_REQUEST, keys)
    return {(one.account_id, one.request_id): one for one in found}


async def insert(conn: AsyncConnection, reservations: Sequence[tuple[holds.Reservation, str]], now: datetime) -> int:
    """Store new reservations with their callers; returns how many were new: the others' request ids are taken."""
    result = await conn.execute(
        postgresql.insert(_RESERVATIONS).on_conflict_do_nothing().returning(_RESERVATIONS.c.reservation_id),
        [
            {
                "account_id": one.account_id,
                "reservation_id": one.reservation_id,
                "request_id": one.request_id,
                "meter": one.meter,
                "period_start": one.period_start,
                "units": one.units,
                "sent_meter": one.sent.meter,
                "sent_operation": one.sent.operation,
                "sent_quantity": one.sent.quantity,
                "state": one.state.value,
                "created_at": now,
                "expires_at": one.expires_at,
                "caller": caller,
            }
            for one, caller in sorted(reservations, key=lambda pair: (pair[0].account_id, pair[0].request_id))
        ],
    )
    return len(result.all())


async def close(
    conn: AsyncConnection, closings: Sequence[tuple[holds.Reservation, holds.HoldState, str | None]], now: datetime
) -> int:
    """Close held reservations with their new state and the event that settled them; returns how many were held."""
    result = await conn.execute(
        _CLOSE,
        {
            "now": now,
            "account_ids": [one.account_id for one, _, _ in closings],
            "ids": [one.reservation_id for one, _, _ in closings],
            "states": [state.value for _, state, _ in closings],
            "event_ids": [event_id for _, _, event_id in closings],
        },
    )
    return result.rowcount


async def expire(
    conn: AsyncConnection, counters: Collection[counters_store.CounterKey], now: datetime
) -> list[tuple[counters_store.CounterKey, str, int]]:
    """Close the holds of locked counters whose time is over; returns counter, reservation id and units of each."""
    rows = await conn.execute(
        _EXPIRE,
        {
            "now": now,
            "account_ids": [key[0] for key in counters],
            "meters": [key[1] for key in counters],
            "starts": [key[2] for key in counters],
        },
    )
    return [
        ((account_id, meter, start), reservation_id, units) for account_id, reservation_id, meter, start, units in rows
    ]


async def count_held(conn: AsyncConnection, account_id: str, now: datetime) -> int:
    """Return how many reservations of an account are held now."""
    reservation = _RESERVATIONS.c
    query = sa.select(sa.func.count()).where(
        reservation.account_id == account_id, reservation.state == "held", reservation.expires_at > now
    )
    return int((await conn.execute(query)).scalar_one())


async def overdue_counters(conn: AsyncConnection, most: int, now: datetime) -> list[counters_store.CounterKey]:
    """Return counters that still hold what has expired."""
    overdue = (
        sa.select(_RESERVATIONS.c.account_id, _RESERVATIONS.c.meter, _RESERVATIONS.c.period_start)
        .where(_RESERVATIONS.c.state == "held", _RESERVATIONS.c.expires_at <= now)
        .order_by(_RESERVATIONS.c.expires_at)
        .limit(most)
        .subquery()
    )
    return [tuple(row) for row in await conn.execute(sa.select(overdue).distinct())]


async def _select(
    conn: AsyncConnection, statement: sa.TextClause, keys: Iterable[tuple[str, str]]
) -> list[holds.Reservation]:
    pairs = list(keys)
    parameters = {"account_ids": [account_id for account_id, _ in pairs], "ids": [id_ for _, id_ in pairs]}
    return [
        holds.Reservation(
            account_id=row.account_id,
            reservation_id=row.reservation_id,
            request_id=row.request_id,
            meter=row.meter,
            period_start=row.period_start,
            units=row.units,
            sent=holds.SentHold(row.sent_meter, row.sent_operation, row.sent_quantity),
            state=holds.HoldState(row.state),
            expires_at=row.expires_at,
        )
        for row in await conn.execute(statement, parameters)
    ]
