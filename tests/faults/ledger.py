"""Compares the callers' logs with the database: nothing is missing, and nothing is there twice."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from billing_svc.platform.database import tables
from tests.billing_svc import books
from tests.faults import callers as callers_module
from tests.faults.callers import Caller

_HELD = sa.text("""
    SELECT account_id, meter, period_start, sum(units) FROM reservations
     WHERE state = 'held' GROUP BY account_id, meter, period_start
""")
_RESERVED = sa.text("SELECT account_id, meter, period_start, reserved FROM usage_counters WHERE reserved <> 0")
# The accrued and billable units of each counter, and its usage reports in order.
_SEALED = sa.text("""
    SELECT c.sealed, c.billable, r.from_units, r.to_units
      FROM usage_reports r JOIN usage_counters c USING (account_id, meter, period_start)
     ORDER BY r.account_id, r.meter, r.period_start, r.slice
""")
_UNREPORTED = sa.text("SELECT count(*) FROM usage_counters c WHERE c.sealed <> coalesce((SELECT sum(to_units - "
    "from_units) FROM usage_reports r WHERE (r.account_id, r.meter, r.period_start) = "
    "(c.account_id, c.meter, c.period_start)), 0)")  # fmt: skip


async def give(engine: AsyncEngine, account_id: str, included: int, at: datetime) -> None:
    """Give an account so many runs by an override."""
    override = {"account_id": account_id, "meter": callers_module.METER, "included": included}
    async with engine.begin() as conn:
        await conn.execute(sa.insert(tables.account_overrides).values(**override, note="", set_by="test", set_at=at))


async def assert_consistent(engine: AsyncEngine) -> None:
    """Assert that events, counters, reservations and usage reports add up."""
    await books.assert_balanced(engine)
    async with engine.connect() as conn:
        assert set(await conn.execute(_HELD)) == set(await conn.execute(_RESERVED))
        # Accrued units are in reports, each of which begins where the report before it ended.
        assert await conn.scalar(_UNREPORTED) == 0
        end = 0
        for row in await conn.execute(_SEALED):
            assert row.from_units in {0, end}, "slices with a gap"
            end = row.to_units


async def assert_kept(engine: AsyncEngine, callers: Sequence[Caller], strict_limit: int) -> None:
    """Assert that the database has exactly what the callers know to be done, and that the limit was never exceeded."""
    assert not any(deed.is_unknown for caller in callers for deed in caller.deeds)
    await assert_consistent(engine)
    events, reservations = tables.usage_events.c, tables.reservations.c
    async with engine.connect() as conn:
        stored = {
            (row.account_id, row.event_id): row.units
            for row in await conn.execute(sa.select(events.account_id, events.event_id, events.units))
        }
        states: dict[tuple[str, str], object] = {
            (row.account_id, row.request_id): (row.state, row.units)
            for row in await conn.execute(sa.select(tables.reservations))
        }
        admitted = sa.select(sa.func.max(events.used_after + events.reserved_after)).where(
            events.account_id == callers[0].strict, events.corrects_event_id.is_(None)
        )
        assert (await conn.scalar(admitted) or 0) <= strict_limit
        held = sa.select(sa.func.coalesce(sa.func.sum(reservations.units), 0)).where(
            reservations.account_id == callers[0].strict, reservations.state == "held"
        )
        assert await books.used(engine, callers[0].strict) + int(await conn.scalar(held) or 0) <= strict_limit
    _assert_same("events", stored, _events(callers))
    _assert_same("reservations", states, _reservations(callers))


def _events(callers: Sequence[Caller]) -> dict[tuple[str, str], int]:
    recorded = {
        (deed.request.account_id, deed.request.event_id): deed.units
        for deed in callers_module.done(callers, "RecordUsage")
    }
    corrected = {
        (deed.request.account_id, deed.request.correction_id): -deed.units
        for deed in callers_module.done(callers, "CorrectUsage")
    }
    return recorded | corrected


def _reservations(callers: Sequence[Caller]) -> dict[tuple[str, str], tuple[str, int]]:
    found = {}
    for deed in callers_module.done(callers, "CheckQuota"):
        state = "held"
        if deed.closer is not None and deed.closer.answer is not None:
            state = "settled" if deed.closer.rpc == "RecordUsage" else "released"
        found[deed.request.account_id, deed.request.request_id] = (state, deed.units)
    return found


def _assert_same(what: str, stored: Mapping[tuple[str, str], object], known: Mapping[tuple[str, str], object]) -> None:
    """Name only the differences, instead of showing thousands of equal values."""
    missing = {key: value for key, value in known.items() if stored.get(key) != value}
    unasked = {key: value for key, value in stored.items() if known.get(key) != value}
    assert (missing, unasked) == ({}, {}), f"{what}: acknowledged {missing}, but stored {unasked}"
