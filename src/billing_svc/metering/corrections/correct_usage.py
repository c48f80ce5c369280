"""Correcting an event: a new event with negative units points to it. A stored event is never changed."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.corrections import rules, store
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.platform import errors
from billing_svc.platform.database import transactions


@dataclass(frozen=True, slots=True)
class Taken:
    """Billable units that a correction takes from a counter, and what is billable afterwards."""

    account_id: str
    meter: str
    period_start: datetime
    billable: int
    billable_after: int


@dataclass(frozen=True, slots=True)
class Repayments:
    """How a correction learns what was paid back, and takes units back without a credit; returns how many."""

    credits_of: Callable[[AsyncConnection, Taken], Awaitable[Sequence[rules.Credit]]]
    take_back: Callable[[AsyncConnection, Taken, datetime], Awaitable[int]]


async def correct(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    correction: rules.Correction,
    repayments: Repayments,
    now: datetime,
) -> rules.Corrected:
    """Take units of an event back from the counter that counted them.

    If money was paid back for the counter's usage already, the units are not credited, unless the correction says so.

    Raises EventNotFound, GaugeNotCorrectable, CorrectionTooLarge and EventIdReused. Corrections of the same event wait
    for the lock of its counter, so together they never take back more units than it had.
    """
    repeated = await _repeated(conn, correction)
    if repeated is not None:
        return repeated
    event = await store.find_event(conn, correction.account_id, correction.event_id)
    if event is None:
        message = f"event_id: the account has no usage event {correction.event_id!r}"
        raise errors.EventNotFound(message, {"event_id": correction.event_id})
    if await _is_gauge(conn, catalogs, event):
        message = "event_id: a gauge is not corrected; record its right level"
        raise errors.GaugeNotCorrectable(message, {"meter": event.meter})
    key = (correction.account_id, event.meter, event.period_start)
    row = (await counters_store.lock_counters(conn, [key]))[key]
    # While this call waited for the lock, an earlier sending of the same correction may have been stored.
    repeated = await _repeated(conn, correction)
    if repeated is not None:
        return repeated
    left = event.units - await store.units_taken_back(conn, correction.account_id, correction.event_id)
    units = left if correction.quantity is None else correction.quantity
    if not 0 < units <= left:
        message = f"quantity: {units} units cannot be taken back; {left} are left of the event"
        raise errors.CorrectionTooLarge(message, {"event_id": correction.event_id, "left": str(left)})
    after = quota_rules.correct(row.counter, units, row.included)
    taken = Taken(*key, row.counter.billable - after.billable, after.billable)
    paid_back = await repayments.credits_of(conn, taken) if taken.billable else ()
    not_credited = 0
    if paid_back and not correction.even_if_credited:
        not_credited = await repayments.take_back(conn, taken, now)
    answer = rules.Corrected(
        duplicate=False,
        meter=event.meter,
        units=units,
        billable=taken.billable,
        left=left - units,
        used=after.used,
        total_billable=after.billable,
        period_start=event.period_start,
        period_end=row.period_end,
        credits=paid_back,
        not_credited=not_credited,
    )
    if not await store.insert(conn, correction, answer, row, now):
        raise transactions.RetryTransaction
    await counters_store.update_totals(conn, key, after, now)
    return answer


async def _repeated(conn: AsyncConnection, correction: rules.Correction) -> rules.Corrected | None:
    """Return the first answer if the correction's id is stored. Raises EventIdReused."""
    earlier = await store.find(conn, correction.account_id, correction.correction_id)
    if earlier is None:
        return None
    content, answer = earlier
    if content != correction.content:
        message = f"correction_id: {correction.correction_id!r} was used with other content"
        raise errors.EventIdReused(message, {"event_id": correction.correction_id})
    return answer


async def _is_gauge(conn: AsyncConnection, catalogs: versions.CatalogCache, event: store.CorrectedEvent) -> bool:
    """Say whether the event's meter is a gauge; of a meter that left the catalog, its event's version says so."""
    newest = await catalogs.latest(conn)
    sold = await catalogs.get(conn, event.catalog_version)
    meter = newest.meters.get(event.meter) or sold.meters.get(event.meter)
    return meter is not None and meter.kind == "gauge"
