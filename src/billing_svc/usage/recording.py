"""Recording a batch of usage events in the caller's transaction: look up, place, lock, count, write.

One statement for each step, whatever the size of the batch. Locks are taken in one order everywhere (counters by key,
then events by key), so that processes cannot deadlock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import errors
from billing_svc.accounts import store as accounts_store
from billing_svc.catalog import versions
from billing_svc.database import transactions
from billing_svc.quota import periods, reading, terms
from billing_svc.quota import rules as quota_rules
from billing_svc.usage import rules, store


@dataclass(frozen=True, slots=True)
class Answer:
    """An event that is stored: by this call, or by an earlier one (`duplicate`)."""

    recorded: rules.Recorded
    duplicate: bool


Outcome: TypeAlias = Answer | rules.Denied | errors.BillingError


@dataclass(frozen=True, slots=True)
class _Placed:
    """A new event with the counter that it goes to."""

    n: int
    event: rules.NewEvent
    known: reading.Known
    occurred_at: datetime
    under: terms.Terms

    @property
    def key(self) -> store.CounterKey:
        return (self.event.account_id, self.known.meter, self.under.period.start)

    @property
    def is_counted(self) -> bool:
        return self.under.period.start in self.known.facts.counters


async def record(
    conn: AsyncConnection, catalogs: versions.CatalogCache, events: Sequence[rules.NewEvent], now: datetime
) -> list[Outcome]:
    """Record events and return an outcome for each, in order; one bad event harms no other.

    Raises RetryTransaction when another transaction stored one of the ids meanwhile: done again, it is a duplicate.
    """
    stored = await store.find_events(conn, {event.key for event in events})
    outcomes: dict[int, Outcome] = {}
    first: dict[tuple[str, str], int] = {}
    for n, event in enumerate(events):
        if event.key in stored:
            outcomes[n] = _repeated(event, *stored[event.key])
        else:
            first.setdefault(event.key, n)
    new = [(n, events[n]) for n in first.values()]
    if new:
        placed = await _place(conn, catalogs, new, outcomes, now)
        await _count(conn, catalogs, placed, outcomes, now)
    # Within a batch the first one wins.
    for n, event in enumerate(events):
        if n not in outcomes:
            outcomes[n] = _repeated_in_batch(event, events[first[event.key]], outcomes[first[event.key]])
    return [outcomes[n] for n in range(len(events))]


async def _place(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    events: Sequence[tuple[int, rules.NewEvent]],
    outcomes: dict[int, Outcome],
    now: datetime,
) -> list[_Placed]:
    """Find the counter of each event; one that has none gets its error as its outcome."""
    asked = [reading.Asked(event.account_id, event.sent.meter or "", event.sent.operation or "") for _, event in events]
    placed = []
    for (n, event), known in zip(events, await reading.read(conn, catalogs, asked, now), strict=True):
        if isinstance(known, errors.BillingError):
            outcomes[n] = known
            continue
        try:
            rules.check_kind(event.sent, known.newest.meters[known.meter])
            occurred_at = rules.check_occurred_at(event.sent.occurred_at, now)
        except errors.BillingError as error:
            outcomes[n] = error
            continue
        under = rules.landing(known.facts.standing, known.catalogs, occurred_at, now)
        placed.append(_Placed(n, event, known, occurred_at, under))
    return placed


async def _count(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    placed: Sequence[_Placed],
    outcomes: dict[int, Outcome],
    now: datetime,
) -> None:
    """Lock the counters, take the events one after the other, and write both."""
    if not placed:
        return
    await accounts_store.insert_missing(
        conn, {one.event.account_id for one in placed if one.known.facts.standing.created_at is None}, now
    )
    missing = {one.key: one.under for one in placed if not one.is_counted}
    if missing:
        await store.insert_counters(conn, missing, now)
    locked = await store.lock_counters(conn, {one.key for one in placed})
    written: dict[store.CounterKey, tuple[quota_rules.Counter, terms.Terms]] = {}
    events = []
    for one in placed:
        row = locked[one.key]
        under = await _terms_of(conn, catalogs, one, row, now)
        counter = written[one.key][0] if one.key in written else row.counter
        outcome, counter = _take(one, under, counter, now)
        outcomes[one.n] = outcome
        if isinstance(outcome, Answer):
            written[one.key] = (counter, under)
            events.append(store.StoredEvent(one.event, one.occurred_at, now, outcome.recorded))
    if not events:
        return
    if await store.insert_events(conn, events) < len(events):
        raise transactions.RetryTransaction
    await store.update_counters(conn, written, now)


async def _terms_of(
    conn: AsyncConnection, catalogs: versions.CatalogCache, placed: _Placed, row: store.LockedCounter, now: datetime
) -> terms.Terms:
    """Return the terms that count: of a past period, the last ones that were kept on its counter."""
    if placed.under.period.end > now or not placed.is_counted:
        return placed.under
    catalog = await catalogs.get(conn, row.catalog_version)
    return replace(
        placed.under,
        catalog_version=row.catalog_version,
        plan=catalog.plan(row.plan),
        quantity=row.quantity,
        pay_as_you_go=row.pay_as_you_go,
        period=periods.Period(placed.under.period.start, row.period_end),
    )


def _take(
    placed: _Placed, under: terms.Terms, counter: quota_rules.Counter, now: datetime
) -> tuple[Outcome, quota_rules.Counter]:
    """Decide on one event and count it; returns the counter unchanged where it is refused."""
    event, meter = placed.event, placed.known.meter
    limit, included = under.limit(meter), under.included(meter)
    # A retry of something that was recorded already is kept, counted as nothing and never denied.
    units = 0 if event.retry_attempt else placed.known.units(under, event.sent.quantity_or_one)
    if units > rules.UNITS_MAX:
        violation = errors.FieldViolation("quantity", f"comes to {units} units; at most {rules.UNITS_MAX} are allowed")
        return errors.InvalidRequest([violation]), counter
    grace_ends_at = quota_rules.grace_end(counter, placed.known.newest.grace_period)
    # Holds of others stand in the way of an admission, not of a fact.
    basis = counter if event.reject else replace(counter, reserved=0)
    decision = quota_rules.decide(limit, included, basis, units, grace_ends_at, now)
    if event.reject and units and not decision.allowed:
        plans = quota_rules.allowing_plans(placed.known.newest, under, meter, units)
        return rules.Denied(meter, units, under, included, counter, decision, plans), counter
    after = quota_rules.count(limit, included, counter, units, now)
    recorded = rules.Recorded(
        meter=meter,
        units=units,
        billable=after.billable - counter.billable,
        period_start=under.period.start,
        period_end=under.period.end,
        plan=under.plan.key,
        catalog_version=under.catalog_version,
        used=after.used,
        reserved=after.reserved,
        total_billable=after.billable,
        included=included,
        reason=decision.reason,
    )
    return Answer(recorded, duplicate=False), after


def _repeated(event: rules.NewEvent, sent: rules.Sent, recorded: rules.Recorded) -> Outcome:
    if event.sent != sent:
        return _reused(event)
    return Answer(recorded, duplicate=True)


def _repeated_in_batch(event: rules.NewEvent, first: rules.NewEvent, outcome: Outcome) -> Outcome:
    if event.sent != first.sent:
        return _reused(event)
    return replace(outcome, duplicate=True) if isinstance(outcome, Answer) else outcome


def _reused(event: rules.NewEvent) -> errors.EventIdReused:
    message = f"event_id: {event.event_id!r} was recorded with other content"
    return errors.EventIdReused(message, {"event_id": event.event_id})
