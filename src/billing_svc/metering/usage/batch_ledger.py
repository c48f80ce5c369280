"""The ledger of a batch of events: counters, levels and holds while the events are counted one after the other."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import parts
from billing_svc.metering.alerts import rules as alerts_rules
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.gauges import rules as gauges_rules
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.metering.quota import holds, lookup, rate_admissions, terms
from billing_svc.metering.quota import rules as quota_rules
from billing_svc.metering.quota import store as quota_store
from billing_svc.metering.reservations import hold_units
from billing_svc.metering.reservations import store as reservations_store
from billing_svc.metering.usage import rules, store
from billing_svc.platform import errors
from billing_svc.platform.database import transactions


@dataclass(slots=True)
class EventAnswer:
    """The answer to a stored event; `duplicate`: an earlier call stored it."""

    recorded: rules.RecordedEvent
    duplicate: bool


EventOutcome: TypeAlias = EventAnswer | rules.DeniedEvent | errors.BillingError


@dataclass(slots=True)
class TargetPeriod:
    """The period, with its terms, in which events of an account, meter and instant count."""

    known: lookup.MeterState
    under: terms.EffectiveTerms
    allowance: terms.Allowance
    key: counters_store.CounterKey
    is_gauge: bool
    used_at: datetime

    @classmethod
    def at(
        cls, known: lookup.MeterState, under: terms.EffectiveTerms, now: datetime, used_at: datetime, *, is_gauge: bool
    ) -> "TargetPeriod":
        """Return the period that the terms name; usage from before it counts as usage of now."""
        key = (known.asked.account_id, known.meter, under.period.start)
        used_at = used_at if used_at >= under.period.start else now
        return cls(known, under, known.allowance(under, now, used_at), key, is_gauge, used_at)

    @property
    def gauge_key(self) -> gauges_store.GaugeKey:
        """The key of the level that the events change, if the meter is a gauge."""
        return self.key[:2]

    def rate_limit(self, now: datetime) -> parts.RateLimit | None:
        """Return the rate limit that the account has now, also if this is a past period."""
        present = self.known.terms_at(now)
        return present.plan.rate_limit_for(pay_as_you_go=present.pay_as_you_go)

    @property
    def is_of_unknown(self) -> bool:
        """Say whether the account does not exist yet."""
        return self.known.facts.account_state.created_at is None


@dataclass(slots=True)
class PlacedEvent:
    """A new event with the period in which it counts; `n`: its place in the batch."""

    n: int
    event: rules.NewEvent
    occurred_at: datetime
    target: TargetPeriod


class BatchLedger:
    """The locked rows of a batch, and the changes that its events make to them."""

    def __init__(
        self,
        locked: Mapping[counters_store.CounterKey, counters_store.LockedCounter],
        levels: Mapping[gauges_store.GaugeKey, gauges_rules.Level],
        reservations: Mapping[tuple[str, str], holds.Reservation],
        terms_of_holds: Mapping[tuple[str, str], rules.HoldTerms],
        now: datetime,
    ) -> None:
        self._rows = dict(locked)
        self._now = now
        self._reservations = dict(reservations)
        self._terms_of_holds = terms_of_holds
        # The units that each account and meter holds now, from all periods.
        self._held: dict[gauges_store.GaugeKey, int] = {}
        for key, row in locked.items():
            if row.counter.reserved:
                self._held[key[:2]] = self._held.get(key[:2], 0) + row.counter.reserved
        self._windows: Mapping[str, quota_rules.RateWindow] = {}
        self._rates = rate_admissions.RateAdmissions(now)
        self._closings: list[tuple[holds.Reservation, holds.HoldState, str | None]] = []
        self.levels = dict(levels)
        self.counters: dict[counters_store.CounterKey, counters_store.CounterUpdate] = {}
        self.events: list[store.StoredEvent] = []
        self.alerts: list[tuple[counters_store.CounterKey, alerts_rules.Alert]] = []

    async def expire(self, conn: AsyncConnection) -> None:
        """Close reservations whose time is over, so that they take up no room in decisions on events with REJECT."""
        holding = [key for key, row in self._rows.items() if row.counter.reserved]
        if not holding:
            return
        for key, units in (await hold_units.expire(conn, holding, self._now)).items():
            self._held[key[:2]] -= units
        self._reservations = {
            named: replace(one, state=one.state_at(self._now)) for named, one in self._reservations.items()
        }

    async def read_windows(self, conn: AsyncConnection, account_ids: Collection[str]) -> None:
        """Read the accounts' rate windows, against which events with REJECT count."""
        self._windows = await quota_store.read_windows(conn, account_ids)

    async def close_reservations(self, conn: AsyncConnection) -> None:
        """Write the new states of the reservations that events named, and count the events in rate windows."""
        await self._close_reservations(conn)
        await self._rates.write(conn)

    async def _close_reservations(self, conn: AsyncConnection) -> None:
        if not self._closings:
            return
        if await reservations_store.close(conn, self._closings, self._now) < len(self._closings):
            raise transactions.RetryTransaction

    def decide_and_count(self, placed: PlacedEvent) -> EventOutcome:
        """Decide on an event and count it. Raises the error of an invalid event, without any change."""
        event, target = placed.event, placed.target
        key, known, under, allowance = target.key, target.known, target.under, target.allowance
        row = self._row(target)
        before = self.counters.get(key, row).counter.holding(self._held.get(key[:2], 0) if self._held else 0)
        level = self.levels.get(target.gauge_key) if self.levels else None
        if level is not None:
            before = quota_rules.raise_peak(allowance, replace(before, level=level.level))
        asked = known.units(under, event.sent.quantity_or_one)
        units = rules.units(event, level, known.meter, asked, placed.occurred_at)
        reservation = self._reservations.get(event.reservation_key) if self._reservations else None
        outcome = _outcome(reservation, known.meter, self._now) if event.reservation_id else None
        is_settling = outcome is holds.SettlementOutcome.SETTLED
        own = reservation.units if reservation is not None and is_settling else 0
        # Other reservations take up room only if the event may be rejected.
        basis = before.holding(before.reserved - own if event.reject else 0)
        promised = self._terms_of_holds.get(event.reservation_key) if own and units > 0 else None
        # Units up to the hold's were decided with the hold, and count under its terms; the rest under the terms in
        # force.
        rest = units
        if promised is not None:
            rest = max(0, units - own)
            basis = promised.count(under, allowance, basis, units - rest, self._now)
        decision = quota_rules.decide(allowance, basis, rest, under.catalog.grace_period, self._now)
        if promised is not None and (rest == 0 or decision.reason is quota_rules.Reason.NONE):
            decision = quota_rules.Decision(allowed=True, reason=promised.reason)
        if event.reject and units > 0:
            # The check that made the event's own hold was already counted in the rate window.
            limited = self._rate_limited(target) if decision.allowed and not own else None
            if limited is not None:
                return rules.DeniedEvent(known.meter, units, under, allowance, before, limited, upgrade_plans=())
            if not decision.allowed:
                # A gauge's level does not end with the plan: a larger plan must have room for all of it.
                wanted = units if level is None else level.level + units
                plans = quota_rules.allowing_plans(known.newest, under, known.meter, wanted)
                return rules.DeniedEvent(known.meter, units, under, allowance, before, decision, plans)
        if reservation is not None:
            self._close(reservation, outcome, event)
            before = before.holding(self._held.get(key[:2], 0))
        counted = before if promised is None else basis.holding(before.reserved)
        after = quota_rules.count(allowance, counted, rest, self._now)
        is_new_allowance = (row.included, row.overridden) != (allowance.included, allowance.overridden)
        for alert in alerts_rules.alerts_to_raise(
            under.catalog.alert_percents, allowance, before, after, is_new_allowance=is_new_allowance
        ):
            self.alerts.append((key, alert))
        self.counters[key] = counters_store.CounterUpdate(after, under, allowance)
        superseded = level is not None and self._move(placed, level, units)
        recorded = rules.RecordedEvent(
            meter=known.meter,
            units=units,
            billable=after.billable - before.billable,
            period_start=under.period.start,
            period_end=under.period.end,
            plan=under.plan.key if promised is None or rest else promised.plan,
            catalog_version=under.catalog_version if promised is None or rest else promised.catalog_version,
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
        held = None if promised is None else _held_part(promised, under, counted.billable - before.billable)
        self.events.append(store.StoredEvent(event, placed.occurred_at, self._now, recorded, held))
        return EventAnswer(recorded, duplicate=False)

    def _rate_limited(self, target: TargetPeriod) -> quota_rules.Decision | None:
        """Admit an event with REJECT to the account's rate window; returns the denial if the window is full."""
        limit = target.rate_limit(self._now)
        if limit is None:
            return None
        account_id = target.key[0]
        return self._rates.admit(account_id, limit, self._windows.get(account_id))

    def _row(self, target: TargetPeriod) -> counters_store.LockedCounter:
        """Return the locked counter, or a new counter at zero."""
        row = self._rows.get(target.key)
        if row is None:
            row = self._rows[target.key] = counters_store.LockedCounter.opened(target.under, target.allowance)
        return row

    def _move(self, placed: PlacedEvent, level: gauges_rules.Level, units: int) -> bool:
        """Change a gauge's level; returns whether a later absolute level supersedes the event."""
        is_set = placed.event.sent.level is not None and not placed.event.retry_attempt
        superseded = rules.is_superseded(placed.event, level, placed.occurred_at)
        moved = level.changed(units)
        self.levels[placed.target.gauge_key] = (
            replace(moved, set_at=placed.occurred_at) if is_set and not superseded else moved
        )
        return superseded

    def _close(
        self,
        reservation: holds.Reservation,
        outcome: holds.SettlementOutcome | None,
        event: rules.NewEvent,
    ) -> None:
        """Give back all units of a reservation, however many were used: the first event that names it settles it."""
        if outcome is holds.SettlementOutcome.UNKNOWN or reservation.state is not holds.HoldState.HELD:
            return
        is_settled = outcome is holds.SettlementOutcome.SETTLED
        state = holds.HoldState.SETTLED if is_settled else holds.HoldState.EXPIRED
        self._closings.append((reservation, state, event.event_id if is_settled else None))
        # Goes below zero if another transaction closed the reservation after it was read; `close_reservations` then
        # raises RetryTransaction.
        pair = (reservation.account_id, reservation.meter)
        self._held[pair] = self._held.get(pair, 0) - reservation.units
        self._reservations[event.reservation_key] = replace(reservation, state=state)


def _held_part(promised: rules.HoldTerms, under: terms.EffectiveTerms, billable: int) -> rules.HeldPart | None:
    """Return the billable units under a hold's terms; None if there are none, or the event has the same terms."""
    if not billable or (promised.plan, promised.catalog_version) == (under.plan.key, under.catalog_version):
        return None
    return rules.HeldPart(promised.plan, promised.catalog_version, billable)


def _outcome(reservation: holds.Reservation | None, meter: str, now: datetime) -> holds.SettlementOutcome:
    """Return the settlement outcome of the reservation that an event names."""
    if reservation is None or reservation.meter != meter:
        return holds.SettlementOutcome.UNKNOWN
    match reservation.state_at(now):
        case holds.HoldState.HELD:
            return holds.SettlementOutcome.SETTLED
        case holds.HoldState.EXPIRED:
            return holds.SettlementOutcome.EXPIRED
        case _:
            return holds.SettlementOutcome.ALREADY_CLOSED
