"""Recording a batch of usage events in the caller's transaction: look up, place, lock, count, write.

One statement for each step, whatever the size of the batch. Locks are taken in one order everywhere (counters, gauge
levels, reservations, events, each by key), so that processes cannot deadlock.
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
from billing_svc.quota import reading, terms
from billing_svc.quota import rules as quota_rules
from billing_svc.reservations import reserving
from billing_svc.reservations import rules as reservations_rules
from billing_svc.reservations import store as reservations_store
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
        unknown = {one.event.account_id for one in placed if one.known.facts.standing.created_at is None}
        if unknown:
            # Free periods may be counted from the account's beginning, which another process may just have set.
            await accounts_store.insert_missing(conn, unknown, now)
            placed = await _place(conn, catalogs, [(one.n, one.event) for one in placed], outcomes, now)
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
    placed: list[_Placed] = []
    begun: set[store.CounterKey] = set()
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
        one = _Placed(n, event, known, occurred_at, under)
        # After another event of the batch a counter is not at zero any more.
        refused = None if one.key in begun else _refused_at_once(one, now)
        if refused is None:
            placed.append(one)
            begun.add(one.key)
        else:
            outcomes[n] = refused
    return placed


def _refused_at_once(one: _Placed, now: datetime) -> Outcome | None:
    """Return why an event is refused even by a counter at zero: then neither that nor the account is made for it."""
    is_new_gauge = one.known.is_gauge and one.known.facts.standing.created_at is None
    if one.is_counted or (one.known.is_gauge and not is_new_gauge):
        return None
    allowance = one.known.allowance(one.under, now)
    levels = {one.gauge_key: gauges_rules.Level(0, None)} if is_new_gauge else {}
    try:
        outcome = _Books({one.key: store.LockedCounter.opened(one.under, allowance)}, levels, {}, now).take(
            one, one.under, allowance
        )
    except errors.BillingError as error:
        return error
    return None if isinstance(outcome, Answer) else outcome


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
    missing = {one.key: (one.under, one.known.allowance(one.under, now)) for one in placed if not one.is_counted}
    if missing:
        await store.insert_counters(conn, missing, now)
    named = {one.event.reservation_key for one in placed if one.event.reservation_id}
    reservations = await reservations_store.find(conn, named) if named else {}
    locked = await store.lock_counters(
        conn, {one.key for one in placed} | {one.counter_key for one in reservations.values()}
    )
    gauges = {one.gauge_key: one.under.period.end for one in placed if one.known.is_gauge}
    levels = await gauges_store.lock(conn, gauges, now) if gauges else {}
    books = _Books(locked, levels, reservations, now)
    if any(one.event.reject for one in placed):
        await books.expire(conn)
    for one in placed:
        under, allowance = await _terms_of(conn, catalogs, one, locked[one.key], now)
        try:
            outcomes[one.n] = books.take(one, under, allowance)
        except errors.BillingError as error:
            outcomes[one.n] = error
    refused = {one.event.key for one in placed if not isinstance(outcomes[one.n], Answer)}
    # What used the quota up while this one waited for the counter may have been its own first sending.
    if refused and await store.find_events(conn, refused):
        raise transactions.RetryTransaction
    if not books.events:
        return
    if await store.write(conn, books.events, books.counters, now) < len(books.events):
        raise transactions.RetryTransaction
    if gauges:
        await gauges_store.update(conn, books.levels, gauges)
    await books.settle(conn)
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
        catalog=catalog,
        plan=catalog.plan(row.plan),
        quantity=row.quantity,
        pay_as_you_go=row.pay_as_you_go,
    )
    override = terms.Override(row.included, None, note="", set_by="", set_at=now) if row.overridden else None
    return under, under.allowance(placed.known.meter, override, now)


class _Books:
    """The counters and levels of a batch while its events are taken, one after the other."""

    def __init__(
        self,
        locked: Mapping[store.CounterKey, store.LockedCounter],
        levels: Mapping[gauges_store.GaugeKey, gauges_rules.Level],
        reservations: Mapping[tuple[str, str], reservations_rules.Reservation],
        now: datetime,
    ) -> None:
        self._locked = locked
        self._now = now
        self._reservations = dict(reservations)
        # What each counter holds for work in progress, as of now.
        self._reserved = {key: row.counter.reserved for key, row in locked.items()}
        self._closings: list[tuple[reservations_rules.Reservation, reservations_rules.State, str | None]] = []
        self.levels = dict(levels)
        self.counters: dict[store.CounterKey, store.Written] = {}
        self.events: list[store.StoredEvent] = []
        self.alerts: list[tuple[store.CounterKey, alerts_rules.Alert]] = []

    async def expire(self, conn: AsyncConnection) -> None:
        """Close the holds whose time is over, so that they do not stand in the way of an admission."""
        holding = [key for key, reserved in self._reserved.items() if reserved]
        if not holding:
            return
        for key, units in (await reserving.expire(conn, holding, self._now)).items():
            self._reserved[key] -= units
        self._reservations = {
            named: replace(one, state=one.state_at(self._now)) for named, one in self._reservations.items()
        }

    async def settle(self, conn: AsyncConnection) -> None:
        """Write what became of the reservations that events named."""
        if not self._closings:
            return
        if await reservations_store.close(conn, self._closings, self._now) < len(self._closings):
            raise transactions.RetryTransaction
        back: dict[store.CounterKey, int] = {}
        for one, _, _ in self._closings:
            back[one.counter_key] = back.get(one.counter_key, 0) - one.units
        await reservations_store.add_reserved(conn, back, self._now)

    def take(self, placed: _Placed, under: terms.Terms, allowance: terms.Allowance) -> Outcome:
        """Decide on one event and count it; raises what makes it unfit, and then nothing has changed."""
        event, row = placed.event, self._locked[placed.key]
        before = self.counters[placed.key].counter if placed.key in self.counters else row.counter
        before = before.holding(self._reserved[placed.key])
        level = self.levels.get(placed.gauge_key)
        if level is not None:
            before = quota_rules.raise_peak(allowance, replace(before, level=level.level))
        asked = placed.known.units(under, event.sent.quantity_or_one)
        units = rules.units(event, level, placed.known.meter, asked, placed.occurred_at)
        grace_period = under.catalog.grace_period
        reservation = self._reservations.get(event.reservation_key)
        outcome = _outcome(event, reservation, placed.known.meter, self._now)
        own = reservation.units if reservation is not None and self._is_held(reservation, placed, outcome) else 0
        # Holds of others stand in the way of an admission, not of a fact.
        basis = before.holding(before.reserved - own if event.reject else 0)
        decision = quota_rules.decide(allowance, basis, units, grace_period, self._now)
        if event.reject and units > 0 and not decision.allowed:
            plans = quota_rules.allowing_plans(placed.known.newest, under, placed.known.meter, units)
            return rules.Denied(placed.known.meter, units, under, allowance, before, decision, plans)
        if reservation is not None:
            self._close(reservation, outcome, event)
        after = quota_rules.count(allowance, before.holding(self._reserved[placed.key]), units, self._now)
        is_new_allowance = (row.included, row.overridden) != (allowance.included, allowance.overridden)
        found = alerts_rules.crossed(
            under.catalog.alert_percents, allowance, before, after, is_new_allowance=is_new_allowance
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
            reservation_outcome=outcome,
        )
        self.events.append(store.StoredEvent(event, placed.occurred_at, self._now, recorded))
        return Answer(recorded, duplicate=False)

    def _is_held(
        self,
        reservation: reservations_rules.Reservation,
        placed: _Placed,
        outcome: reservations_rules.Outcome | None,
    ) -> bool:
        """Say whether a reservation still counts in the event's own counter."""
        return outcome is reservations_rules.Outcome.SETTLED and reservation.counter_key == placed.key

    def _close(
        self,
        reservation: reservations_rules.Reservation,
        outcome: reservations_rules.Outcome | None,
        event: rules.NewEvent,
    ) -> None:
        """Give back what a reservation holds, whatever was used: the first event that names it settles it."""
        if outcome is reservations_rules.Outcome.UNKNOWN or reservation.state is not reservations_rules.State.HELD:
            return
        is_settled = outcome is reservations_rules.Outcome.SETTLED
        state = reservations_rules.State.SETTLED if is_settled else reservations_rules.State.EXPIRED
        self._closings.append((reservation, state, event.event_id if is_settled else None))
        self._reserved[reservation.counter_key] -= reservation.units
        self._reservations[event.reservation_key] = replace(reservation, state=state)


def _outcome(
    event: rules.NewEvent, reservation: reservations_rules.Reservation | None, meter: str, now: datetime
) -> reservations_rules.Outcome | None:
    """Return what an event finds of the reservation that it names; None if it names none."""
    if not event.reservation_id:
        return None
    if reservation is None or reservation.meter != meter:
        return reservations_rules.Outcome.UNKNOWN
    match reservation.state_at(now):
        case reservations_rules.State.HELD:
            return reservations_rules.Outcome.SETTLED
        case reservations_rules.State.EXPIRED:
            return reservations_rules.Outcome.EXPIRED
        case _:
            return reservations_rules.Outcome.ALREADY_CLOSED


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
