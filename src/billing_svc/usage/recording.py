"""Recording a batch of usage events in the caller's transaction: look up, place, lock, count, write.

One statement for each step, whatever the size of the batch. Locks are taken in one order everywhere (counters by key,
then events by key), so that processes cannot deadlock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import errors
from billing_svc.accounts import store as accounts_store
from billing_svc.alerts import rules as alerts_rules
from billing_svc.alerts import store as alerts_store
from billing_svc.catalog import versions
from billing_svc.database import transactions
from billing_svc.gauges import rules as gauges_rules
from billing_svc.gauges import store as gauges_store
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
    def gauge_key(self) -> gauges_store.GaugeKey:
        return (self.event.account_id, self.known.meter)

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
        # A level is not of the past: it counts in the present period, whenever it was measured.
        lands_at = now if known.is_gauge else occurred_at
        under = rules.landing(known.facts.standing, known.catalogs, lands_at, now)
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
    missing = {one.key: (one.under, one.known.allowance(one.under, now)) for one in placed if not one.is_counted}
    if missing:
        await store.insert_counters(conn, missing, now)
    locked = await store.lock_counters(conn, {one.key for one in placed})
    gauges = {one.gauge_key: one.under.period.end for one in placed if one.known.is_gauge}
    levels = await gauges_store.lock(conn, gauges) if gauges else {}
    books = _Books(locked, levels, now)
    for one in placed:
        under, allowance = await _terms_of(conn, catalogs, one, locked[one.key], now)
        try:
            outcomes[one.n] = books.take(one, under, allowance)
        except errors.BillingError as error:
            outcomes[one.n] = error
    if not books.events:
        return
    if await store.insert_events(conn, books.events) < len(books.events):
        raise transactions.RetryTransaction
    await store.update_counters(conn, books.counters, now)
    if gauges:
        await gauges_store.update(conn, books.levels, gauges)
    await alerts_store.raise_alerts(conn, books.alerts, now)


async def _terms_of(
    conn: AsyncConnection, catalogs: versions.CatalogCache, placed: _Placed, row: store.LockedCounter, now: datetime
) -> tuple[terms.Terms, terms.Allowance]:
    """Return the terms that count: of a past period, the last ones that were kept on its counter."""
    if placed.under.period.end > now or not placed.is_counted:
        return placed.under, placed.known.allowance(placed.under, now)
    catalog = await catalogs.get(conn, row.catalog_version)
    under = replace(
        placed.under,
        catalog_version=row.catalog_version,
        plan=catalog.plan(row.plan),
        quantity=row.quantity,
        pay_as_you_go=row.pay_as_you_go,
        period=periods.Period(placed.under.period.start, row.period_end),
    )
    kept = under.allowance(placed.known.meter, None, now)
    return under, replace(kept, included=row.included, overridden=row.overridden)


class _Books:
    """The counters and levels of a batch while its events are taken, one after the other."""

    def __init__(
        self,
        locked: Mapping[store.CounterKey, store.LockedCounter],
        levels: Mapping[gauges_store.GaugeKey, gauges_rules.Level],
        now: datetime,
    ) -> None:
        self._locked = locked
        self._now = now
        self.levels = dict(levels)
        self.counters: dict[store.CounterKey, store.Written] = {}
        self.events: list[store.StoredEvent] = []
        self.alerts: list[tuple[store.CounterKey, alerts_rules.Alert]] = []

    def take(self, placed: _Placed, under: terms.Terms, allowance: terms.Allowance) -> Outcome:
        """Decide on one event and count it; raises what makes it unfit, and then nothing has changed."""
        event, row = placed.event, self._locked[placed.key]
        before = self.counters[placed.key].counter if placed.key in self.counters else row.counter
        level = self.levels.get(placed.gauge_key)
        if level is not None:
            before = quota_rules.raise_peak(allowance, replace(before, level=level.level))
        units = rules.units(event, level, placed.occurred_at, placed.known, under)
        grace_period = placed.known.newest.grace_period
        # Holds of others stand in the way of an admission, not of a fact.
        basis = before if event.reject else replace(before, reserved=0)
        decision = quota_rules.decide(allowance, basis, units, grace_period, self._now)
        if event.reject and units > 0 and not decision.allowed:
            plans = quota_rules.allowing_plans(placed.known.newest, under, placed.known.meter, units)
            return rules.Denied(placed.known.meter, units, under, allowance, before, decision, plans)
        after = quota_rules.count(allowance, before, units, self._now)
        is_new_allowance = (row.included, row.overridden) != (allowance.included, allowance.overridden)
        found = alerts_rules.crossed(
            placed.known.newest.alert_percents, allowance, before, after, is_new_allowance=is_new_allowance
        )
        self.alerts += [(placed.key, alert) for alert in found]
        self.counters[placed.key] = store.Written(after, under, allowance)
        superseded = False
        if level is not None:
            is_set = event.sent.level is not None and not event.retry_attempt
            superseded = is_set and level.is_newer_than(placed.occurred_at)
            moved = level.changed(units)
            self.levels[placed.gauge_key] = (
                replace(moved, set_at=placed.occurred_at) if is_set and not superseded else moved
            )
        recorded = rules.Recorded(
            meter=placed.known.meter,
            units=units,
            billable=after.billable - before.billable,
            period_start=under.period.start,
            period_end=under.period.end,
            plan=under.plan.key,
            catalog_version=under.catalog_version,
            used=after.shown_used,
            reserved=after.reserved,
            total_billable=after.billable,
            remaining=after.remaining(allowance.included),
            included=allowance.included,
            overridden=allowance.overridden,
            reason=decision.reason,
            superseded=superseded,
        )
        self.events.append(store.StoredEvent(event, placed.occurred_at, self._now, recorded))
        return Answer(recorded, duplicate=False)


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
