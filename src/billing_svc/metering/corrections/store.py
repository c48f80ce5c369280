"""Corrections in Postgres: rows of usage_events with negative units; their ids share the event ids' key."""

from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.metering.corrections import rules
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.platform.database import select_list, tables

_EVENTS = tables.usage_events
# The properties of a correction's row, beside its note.
_EVEN_IF_CREDITED, _CREDITS, _NOT_CREDITED = "even_if_credited", "already_credited", "not_credited"


@dataclass(frozen=True, slots=True)
class CorrectedEvent:
    """An event that may be corrected."""

    meter: str
    period_start: datetime
    units: int
    catalog_version: int


async def find(
    conn: AsyncConnection, account_id: str, correction_id: str
) -> tuple[tuple[str | None, int | None, str, bool], rules.Corrected] | None:
    """Return content and answer of the row stored under an id; of an event, a content that equals no correction's."""
    row = (await conn.execute(sa.select(_EVENTS).where(*_is(account_id, correction_id)))).one_or_none()
    if row is None:
        return None
    answer = rules.Corrected(
        duplicate=True,
        meter=row.meter,
        units=-row.units,
        billable=-row.billable,
        left=row.remaining_after,
        used=row.used_after,
        total_billable=row.billable_after,
        period_start=row.period_start,
        period_end=row.period_end,
        credits=tuple(rules.Credit(**credit) for credit in row.properties.get(_CREDITS, ())),
        not_credited=row.properties.get(_NOT_CREDITED, 0),
    )
    content = (row.properties.get("note", ""), row.properties.get(_EVEN_IF_CREDITED, False))
    return (row.corrects_event_id, row.sent_quantity, *content), answer


async def find_event(conn: AsyncConnection, account_id: str, event_id: str) -> CorrectedEvent | None:
    """Return the event to be corrected; None if there is no event of that id. A correction cannot be corrected."""
    query = sa.select(*select_list.columns(CorrectedEvent, _EVENTS))
    row = (
        await conn.execute(query.where(*_is(account_id, event_id), _EVENTS.c.corrects_event_id.is_(None)))
    ).one_or_none()
    return None if row is None else CorrectedEvent(*row)


async def units_taken_back(conn: AsyncConnection, account_id: str, event_id: str) -> int:
    """Return how many units of an event were taken back so far; to be read under the lock of its counter."""
    query = sa.select(sa.func.coalesce(-sa.func.sum(_EVENTS.c.units), 0))
    where = (_EVENTS.c.account_id == account_id, _EVENTS.c.corrects_event_id == event_id)
    return int((await conn.execute(query.where(*where))).scalar_one())


async def insert(
    conn: AsyncConnection,
    correction: rules.Correction,
    answer: rules.Corrected,
    row: counters_store.LockedCounter,
    now: datetime,
) -> bool:
    """Store a correction with its answer; returns whether its id was new."""
    inserted = await conn.execute(
        postgresql.insert(_EVENTS)
        .values(
            account_id=correction.account_id,
            event_id=correction.correction_id,
            corrects_event_id=correction.event_id,
            sent_quantity=correction.quantity,
            properties=_properties(correction, answer),
            meter=answer.meter,
            period_start=answer.period_start,
            units=-answer.units,
            billable=-answer.billable,
            occurred_at=now,
            recorded_at=now,
            caller=correction.caller,
            request_id=correction.request_id,
            period_end=answer.period_end,
            plan=row.plan,
            catalog_version=row.catalog_version,
            used_after=answer.used,
            reserved_after=row.counter.reserved,
            billable_after=answer.total_billable,
            # In a correction's row this column holds the units that are left of the event.
            remaining_after=answer.left,
            included=row.included,
            overridden=row.overridden,
            reason=quota_rules.Reason.NONE.value,
        )
        .on_conflict_do_nothing()
        .returning(_EVENTS.c.event_id)
    )
    return inserted.scalar_one_or_none() is not None


def _properties(correction: rules.Correction, answer: rules.Corrected) -> dict[str, object]:
    """Return what has no column of its own, without empty values."""
    values = {
        "note": correction.note,
        _EVEN_IF_CREDITED: correction.even_if_credited,
        _CREDITS: [asdict(credit) for credit in answer.credits],
        _NOT_CREDITED: answer.not_credited,
    }
    return {name: value for name, value in values.items() if value}


def _is(account_id: str, event_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_EVENTS.c.account_id == account_id, _EVENTS.c.event_id == event_id)
