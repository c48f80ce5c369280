"""Recording a batch of usage events in the caller's transaction: look up, place, lock, count, write.

One round trip for each step, whatever the size of the batch. Locks are taken in one order everywhere (counters, gauge
levels, reservations, then what is new: accounts, counters, events; each by key), so that processes cannot deadlock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import errors
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


@dataclass(slots=True)
class Answer:
    """An event that is stored: by this call, or by an earlier one (`duplicate`)."""

    recorded: rules.Recorded
    duplicate: bool


Outcome: TypeAlias = Answer | rules.Denied | errors.BillingError


@dataclass(slots=True)
class _Landing:
    """Where events of one account and meter count that happened at one instant, and under which terms."""

    known: reading.Known
    under: terms.Terms
    allowance: terms.Allowance
    key: store.CounterKey

    @classmethod
    def at(cls, known: reading.Known, under: terms.Terms, now: datetime) -> "_Landing":
        """Return where events count under some terms."""
        key = (known.asked.account_id, known.meter, under.period.start)
        return cls(known, under, known.allowance(under, now), key)

    @property
    def gauge_key(self) -> gauges_store.GaugeKey:
        return self.key[:2]

    @property
    def is_of_unknown(self) -> bool:
        """Say whether this will be the account's beginning."""
        return self.known.facts.standing.created_at is None


@dataclass(slots=True)
class _Placed:
    """A new event with the counter that it goes to."""

    n: int
    event: rules.NewEvent
    occurred_at: datetime
    landing: _Landing


async def record(
    conn: AsyncConnection, catalogs: versions.CatalogCache, events: Sequence[rules.NewEvent], now: datetime
) -> list[Outcome]:
    """Record events and return an outcome for each, in order; one bad event harms no other.

    Raises RetryTransaction when another transaction stored one of the ids meanwhile: done again, it is a duplicate.
    """
    keys = [event.key for event in events]
    names = [(event.account_id, event.sent.meter or "", event.sent.operation or "") for event in events]
    # Events of the same meter of an account share what is read.
    asked = list(dict.fromkeys(names))
    read, (found,) = await reading.read_standings(
        conn, catalogs, [reading.Asked(*one) for one in asked], now, store.finding(set(keys))
    )
    known = dict(zip(asked, read, strict=True))
    stored = store.to_events(found)
    outcomes: dict[int, Outcome] = {}
    first: dict[tuple[str, str], int] = {}
    for n, key in enumerate(keys):
        if key in stored:
            outcomes[n] = _repeated(events[n], *stored[key])
        else:
            first.setdefault(key, n)
    if first:
        placed = _place([(n, events[n], known[names[n]]) for n in first.values()], outcomes, now)
        await _count(conn, catalogs, placed, outcomes, now)
    # Within a batch the first one wins.
    for n, key in enumerate(keys):
        if n not in outcomes:
            outcomes[n] = _repeated_in_batch(events[n], events[first[key]], outcomes[first[key]])
    return [outcomes[n] for n in range(len(events))]


def _place(
    events: Sequence[tuple[int, rules.NewEvent, reading.Known | errors.BillingError]],
    outcomes: dict[int, Outcome],
    now: datetime,
) -> list[_Placed]:
    """Find the counter of each event; one that has none gets its error as its outcome."""
    placed: list[_Placed] = []
    landings: dict[tuple[int, datetime], _Landing] = {}
    begun: set[gauges_store.GaugeKey] = set()
    for n, event, found in events:
        if isinstance(found, errors.BillingError):
            outcomes[n] = found
            continue
        try:
            rules.check_kind(event.sent, found.newest.meters[found.meter])
            occurred_at = rules.check_occurred_at(event.sent.occurred_at, now)
        except errors.BillingError as error:
            outcomes[n] = error
            continue
        # A level is not of the past: it counts in the present period, whenever it was measured.
        lands_at = now if found.is_gauge else occurred_at
        landing = landings.get((id(found), lands_at))
        if landing is None:
            standing = found.facts.standing
            if standing.created_at is None:
                standing = replace(standing, created_at=now)
            under = rules.landing(standing, found.catalogs, lands_at, now)
            landing = landings[id(found), lands_at] = _Landing.at(found, under, now)
        one = _Placed(n, event, occurred_at, landing)
        # A gauge is made before its event is taken. After another event of the batch it is not at zero any more.
        is_begun = not (found.is_gauge and landing.is_of_unknown) or landing.gauge_key in begun
        refused = None if is_begun else _refused_at_once(one, now)
        if refused is None:
            placed.append(one)
            begun.add(landing.gauge_key)
        else:
            outcomes[n] = refused
    return placed


def _refused_at_once(one: _Placed, now: datetime) -> Outcome | None:
    """Return why an event is refused even by a gauge at zero: then neither that nor the account is made for it."""
    books = _Books({}, {one.landing.gauge_key: gauges_rules.Level(0, None)}, {}, now)
    try:
        outcome = books.take(one)
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
    """Lock the counters, take the events one after the other, and write both.

    A counter that nobody has yet is opened here and written with its totals, and so is an account: whoever creates one
    of them meanwhile makes us begin anew.
    """
    if not placed:
        return
    landings = list({id(one.landing): one.landing for one in placed}.values())
    named = {one.event.reservation_key for one in placed if one.event.reservation_id}
    reservations = await reservations_store.find(conn, named) if named else {}
    # Of an account that is known, whether or not it has this counter yet.
    counted = {one.key for one in landings if not one.is_of_unknown} | {
        one.counter_key for one in reservations.values()
    }
    locked = await store.lock_counters(conn, counted) if counted else {}
    for landing in landings:
        await _keep_terms(conn, catalogs, landing, locked, now)
    gauges = {one.gauge_key: one.under.period.end for one in landings if one.known.is_gauge}
    levels = await gauges_store.lock(conn, gauges, now) if gauges else {}
    books = _Books(locked, levels, reservations, now)
    if any(one.event.reject for one in placed):
        await books.expire(conn)
    for one in placed:
        try:
            outcomes[one.n] = books.take(one)
        except errors.BillingError as error:
            outcomes[one.n] = error
    refused = {one.event.key for one in placed if not isinstance(outcomes[one.n], Answer)}
    # What used the quota up while this one waited for the counter may have been its own first sending.
    if refused and await store.find_events(conn, refused):
        raise transactions.RetryTransaction
    if not books.events:
        return
    if gauges:
        await gauges_store.update(conn, books.levels, gauges)
    await books.settle(conn)
    await alerts_store.raise_alerts(conn, books.alerts, now)
    known = {key: one for key, one in books.counters.items() if key in locked}
    opened = {key: one for key, one in books.counters.items() if key not in locked}
    unknown = {one.key[0] for one in landings if one.is_of_unknown and one.key in opened}
    store.write(conn, books.events, known, opened, unknown, now)


async def _keep_terms(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    landing: _Landing,
    locked: Mapping[store.CounterKey, store.LockedCounter],
    now: datetime,
) -> None:
    """Let the terms of a past period be the last ones that were kept on its counter."""
    if landing.under.period.end > now or landing.key not in locked:
        return
    row = locked[landing.key]
    catalog = await catalogs.get(conn, row.catalog_version)
    landing.under = replace(
        landing.under,
        catalog_version=row.catalog_version,
        catalog=catalog,
        plan=catalog.plan(row.plan),
        quantity=row.quantity,
        pay_as_you_go=row.pay_as_you_go,
    )
    override = terms.Override(row.included, None, note="", set_by="", set_at=now) if row.overridden else None
    landing.allowance = landing.under.allowance(landing.known.meter, override, now)


class _Books:
    """The counters and levels of a batch while its events are taken, one after the other."""

    def __init__(
        self,
        locked: Mapping[store.CounterKey, store.LockedCounter],
        levels: Mapping[gauges_store.GaugeKey, gauges_rules.Level],
        reservations: Mapping[tuple[str, str], reservations_rules.Reservation],
        now: datetime,
    ) -> None:
        self._rows = dict(locked)
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

    def take(self, placed: _Placed) -> Outcome:
        """Decide on one event and count it; raises what makes it unfit, and then nothing has changed."""
        event, landing = placed.event, placed.landing
        key, known, under, allowance = landing.key, landing.known, landing.under, landing.allowance
        row = self._row(landing)
        before = self.counters.get(key, row).counter.holding(self._reserved[key])
        level = self.levels.get(landing.gauge_key) if self.levels else None
        if level is not None:
            before = quota_rules.raise_peak(allowance, replace(before, level=level.level))
        asked = known.units(under, event.sent.quantity_or_one)
        units = rules.units(event, level, known.meter, asked, placed.occurred_at)
        reservation = self._reservations.get(event.reservation_key) if self._reservations else None
        outcome = _outcome(event, reservation, known.meter, self._now)
        own = reservation.units if reservation is not None and self._is_held(reservation, key, outcome) else 0
        # Holds of others stand in the way of an admission, not of a fact.
        basis = before.holding(before.reserved - own if event.reject else 0)
        decision = quota_rules.decide(allowance, basis, units, under.catalog.grace_period, self._now)
        if event.reject and units > 0 and not decision.allowed:
            plans = quota_rules.allowing_plans(known.newest, under, known.meter, units)
            return rules.Denied(known.meter, units, under, allowance, before, decision, plans)
        if reservation is not None:
            self._close(reservation, outcome, event)
            before = before.holding(self._reserved[key])
        after = quota_rules.count(allowance, before, units, self._now)
        is_new_allowance = (row.included, row.overridden) != (allowance.included, allowance.overridden)
        for alert in alerts_rules.crossed(
            under.catalog.alert_percents, allowance, before, after, is_new_allowance=is_new_allowance
        ):
            self.alerts.append((key, alert))
        self.counters[key] = store.Written(after, under, allowance)
        superseded = level is not None and self._move(placed, level, units)
        recorded = rules.Recorded(
            meter=known.meter,
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

    def _row(self, landing: _Landing) -> store.LockedCounter:
        """Return the counter as it was locked, or as it is opened."""
        row = self._rows.get(landing.key)
        if row is None:
            row = self._rows[landing.key] = store.LockedCounter.opened(landing.under, landing.allowance)
            self._reserved[landing.key] = 0
        return row

    def _move(self, placed: _Placed, level: gauges_rules.Level, units: int) -> bool:
        """Move a gauge's level; returns whether the event is a set that came too late to count."""
        is_set = placed.event.sent.level is not None and not placed.event.retry_attempt
        superseded = is_set and level.is_newer_than(placed.occurred_at)
        moved = level.changed(units)
        self.levels[placed.landing.gauge_key] = (
            replace(moved, set_at=placed.occurred_at) if is_set and not superseded else moved
        )
        return superseded

    def _is_held(
        self,
        reservation: reservations_rules.Reservation,
        key: store.CounterKey,
        outcome: reservations_rules.Outcome | None,
    ) -> bool:
        """Say whether a reservation still counts in the event's own counter."""
        return outcome is reservations_rules.Outcome.SETTLED and reservation.counter_key == key

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
