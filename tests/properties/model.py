"""A simple model of the service's counting, written without the service's code, to compare the service with."""

import calendar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.properties import offers

LATE = timedelta(minutes=30)
GRACE = timedelta(hours=offers.GRACE_HOURS)


@dataclass(slots=True)
class Subscription:
    """Gives its plan in [start, end)."""

    name: str
    plan: str
    seats: int
    start: datetime
    anchor: datetime
    end: datetime | None = None
    cancel_at: datetime | None = None
    over: bool = False

    def covers(self, at: datetime) -> bool:
        return self.start <= at and (self.end is None or at < self.end)


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a meter: `included` None means unlimited; `beyond` is empty if the plan does not have the meter."""

    plan: str
    included: int | None
    beyond: str


@dataclass(slots=True)
class Counter:
    """The totals of a meter in a period; for a gauge, `used` is the peak."""

    terms: Terms
    used: int = 0
    billable: int = 0
    exceeded_at: datetime | None = None


@dataclass(slots=True)
class Event:
    """A recorded event, with the units that are left after corrections."""

    meter: str
    start: datetime
    left: int


@dataclass(slots=True)
class Hold:
    """Units that are held, and what was promised for them; `within` of them fitted in what was included."""

    meter: str
    units: int
    start: datetime
    terms: Terms
    within: int
    expires_at: datetime
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer must contain."""

    allowed: bool
    used: int
    billable: int
    units: int


@dataclass(slots=True)
class Account:
    """The whole history of an account."""

    now: datetime
    subscriptions: list[Subscription] = field(default_factory=list)
    # The subscriptions that have pay-as-you-go on the default plan.
    metered_only: list[Subscription] = field(default_factory=list)
    # The subscription under which pay-as-you-go was switched on.
    pay_as_you_go_under: str | None = None
    overrides: dict[str, tuple[int | None, datetime | None]] = field(default_factory=dict)
    counters: dict[tuple[str, datetime], Counter] = field(default_factory=dict)
    levels: dict[str, tuple[int, datetime | None]] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)

    # Terms and periods.

    def subscription(self, at: datetime) -> Subscription | None:
        covering = [one for one in self.subscriptions if one.covers(at)]
        return max(covering, key=lambda one: (one.start, one.name)) if covering else None

    def terms(self, meter: str, at: datetime) -> Terms:
        found = self.subscription(at)
        plan, seats = (found.plan, found.seats) if found else ("free", 1)
        offer = offers.PLANS[plan].get(meter)
        carriers = [found] if found else [one for one in self.metered_only if one.covers(at)]
        if self.pay_as_you_go_under in {one.name for one in carriers}:
            offer = offers.OVERLAYS.get(plan, {}).get(meter, offer)
        beyond = offer.beyond if offer else ""
        if meter in self.overrides:
            included, expires_at = self.overrides[meter]
            if expires_at is None or self.now < expires_at:
                # A meter outside the plan has only what the override gives.
                return Terms(plan, included, beyond or ("" if offer else "deny"))
        if offer is None:
            return Terms(plan, 0, "absent")
        included = offer.included
        return Terms(plan, included * seats if included is not None and offer.per_seat else included, beyond)

    def end_what_a_plan_replaces(self) -> None:
        """A plan switches off the default plan's pay-as-you-go, and it stays off when the plan ends."""
        if self.subscription(self.now) and self.pay_as_you_go_under in {one.name for one in self.metered_only}:
            self.pay_as_you_go_under = None

    def period(self, at: datetime) -> tuple[datetime, datetime]:
        """Return the month that contains `at`, cut where a subscription begins or ends."""
        found = self.subscription(at)
        if found is None or found.plan == "calendar":
            start, end = _month(datetime(at.year, at.month, 1, tzinfo=UTC), 0), None
            end = _month(start, 1)
        else:
            months = next(n for n in range(-2, 1000) if _month(found.anchor, n + 1) > at)
            start, end = _month(found.anchor, months), _month(found.anchor, months + 1)
        # A period ends early only where one plan follows another.
        for cut in self._cuts():
            if cut <= at:
                start = max(start, cut)
            else:
                end = min(end, cut)
        return start, end

    def _cuts(self) -> list[datetime]:
        bounds = {at for one in self.subscriptions for at in (one.start, one.end) if at is not None}
        return sorted(
            at for at in bounds if self.subscription(at) is not self.subscription(at - timedelta(microseconds=1))
        )

    def ends(self) -> list[datetime]:
        """Return the instants at which an answer may change, also past instants."""
        end = self.period(self.now)[1]
        ended = [self.period(start)[1] for _, start in self.counters]
        graces = [one.exceeded_at + GRACE for one in self.counters.values() if one.exceeded_at is not None]
        overrides = [expires_at for _, expires_at in self.overrides.values() if expires_at is not None]
        holds = [one.expires_at for one in self.holds.values()]
        return [end, *(at + LATE for at in (end, *ended)), *graces, *overrides, *holds]

    def target(self, meter: str, occurred_at: datetime) -> tuple[tuple[str, datetime], Terms]:
        """Return the counter that an event counts in, and the terms that it counts under."""
        start, end = self.period(occurred_at)
        if self.now >= end + LATE:
            occurred_at = self.now
            start, end = self.period(occurred_at)
        key = (meter, start)
        if end <= self.now and key in self.counters:
            return key, self.counters[key].terms
        return key, self.terms(meter, occurred_at)

    # Counting.

    def consumed(self, meter: str, counter: Counter) -> int:
        return self.level(meter) if meter in offers.GAUGES else counter.used - counter.billable

    def level(self, meter: str) -> int:
        return self.levels.get(meter, (0, None))[0]

    def reserved(self, meter: str, without: Hold | None = None) -> int:
        """Return what all holds of a meter take, whichever period they were made in."""
        return sum(one.units for one in self.holds.values() if one.meter == meter and self.is_live(one, without))

    def is_live(self, hold: Hold, without: Hold | None = None) -> bool:
        return hold is not without and not hold.closed and self.now < hold.expires_at

    def allows(self, consumed: int, counter: Counter, terms: Terms, units: int, reserved: int) -> bool:
        """Say whether `units` more are admitted."""
        if terms.beyond == "absent":
            return False
        if terms.included is None or units <= max(0, terms.included - consumed - reserved):
            return True
        if terms.beyond == "grace":
            is_over = consumed > terms.included
            return not (is_over and counter.exceeded_at is not None and self.now >= counter.exceeded_at + GRACE)
        return terms.beyond in {"charge", "allow"}

    def check(self, meter: str, units: int) -> Told:
        counter = self.present(meter)
        terms = self.terms(meter, self.now)
        shown = self.level(meter) if meter in offers.GAUGES else counter.used
        consumed = self.consumed(meter, counter)
        return Told(self.allows(consumed, counter, terms, units, self.reserved(meter)), shown, counter.billable, units)

    def hold(self, name: str, meter: str, units: int, ttl: timedelta) -> Told:
        """Decide as a check does, and hold the units that are allowed."""
        expected, counter, terms = self.check(meter, units), self.present(meter), self.terms(meter, self.now)
        if expected.allowed:
            start = self.period(self.now)[0]
            room = units
            if terms.included is not None:
                room = max(0, terms.included - self.consumed(meter, counter) - self.reserved(meter))
            self.holds[name] = Hold(meter, units, start, terms, min(units, room), self.now + ttl)
            self.counters.setdefault((meter, start), Counter(terms))
        return expected

    def present(self, meter: str) -> Counter:
        """Return the counter of the present period in the state in which it would open."""
        terms = self.terms(meter, self.now)
        counter = self.counters.get((meter, self.period(self.now)[0])) or Counter(terms)
        counter = Counter(terms, counter.used, counter.billable, counter.exceeded_at)
        if meter in offers.GAUGES:
            _raise_peak(counter, terms, self.level(meter))
        return counter

    def record(
        self, event_id: str, meter: str, units: int, occurred_at: datetime, *, reject: bool, hold: Hold | None = None
    ) -> Told:
        key, terms = self.target(meter, occurred_at)
        before = self.counters.get(key) or Counter(terms)
        own = hold if hold is not None and self.is_live(hold) and units > 0 else None
        part = min(units, own.units) if own else 0
        after = Counter(terms, before.used, before.billable, before.exceeded_at)
        if own is not None:
            # A period of another plan has nothing of what the hold's plan includes.
            is_elsewhere = key[1] != own.start and terms.plan != own.terms.plan
            charged = max(0, part - own.within) if is_elsewhere else _charged(before, own.terms, part)
            after.used += part
            after.billable += charged if own.terms.beyond == "charge" else 0
        rest = units - part
        consumed = after.used - after.billable
        if reject and rest > 0 and not self.allows(consumed, before, terms, rest, self.reserved(meter, without=own)):
            return Told(allowed=False, used=before.used, billable=0, units=0)
        after.billable += _charged(after, terms, rest)
        after.used += rest
        if terms.included is not None and after.used - after.billable > terms.included:
            was_over = before.used - before.billable > terms.included
            if not was_over or after.exceeded_at is None:
                after.exceeded_at = self.now
        if hold is not None:
            hold.closed = True
        self.counters[key] = after
        self.events[event_id] = Event(meter, key[1], units)
        return Told(allowed=True, used=after.used, billable=after.billable - before.billable, units=units)

    def move_level(
        self,
        event_id: str,
        meter: str,
        occurred_at: datetime | None,
        *,
        to: int | None,
        by: int,
        reject: bool,
        hold: Hold | None = None,
    ) -> Told | None:
        """Set a level or change it; None if the change is refused as invalid."""
        key, terms = self.target(meter, self.now)
        before = self.counters.get(key) or Counter(terms)
        level, set_at = self.levels.get(meter, (0, None))
        after = Counter(terms, before.used, before.billable, before.exceeded_at)
        _raise_peak(after, terms, level)
        happened_at = self.now if occurred_at is None else occurred_at
        # What happened before the last set is contained in it; a change without a time happens now, after all others.
        is_stale = set_at is not None and happened_at < set_at and (to is not None or occurred_at is not None)
        change = 0 if is_stale else by if to is None else to - level
        if level + change < 0:
            return None
        own = hold if hold is not None and self.is_live(hold) and change > 0 else None
        part = min(change, own.units) if own else 0
        rest, room_taken = change - part, self.reserved(meter, without=own)
        if reject and rest > 0 and not self.allows(level + part, after, terms, rest, room_taken):
            return Told(allowed=False, used=level, billable=0, units=0)
        opened = after.billable
        if own is not None:
            _raise_peak(after, own.terms, level + part)
        _raise_peak(after, terms, level + change)
        if hold is not None:
            hold.closed = True
        self.counters[key] = after
        self.levels[meter] = (level + change, happened_at if to is not None and not is_stale else set_at)
        self.events[event_id] = Event(meter, key[1], 0)
        return Told(allowed=True, used=level + change, billable=after.billable - opened, units=change)

    def open_gauges(self) -> None:
        """Open the present period of gauges that have a level."""
        for meter in offers.GAUGES:
            if self.level(meter):
                key, terms = self.target(meter, self.now)
                counter = self.counters.setdefault(key, Counter(terms))
                counter.terms = terms
                _raise_peak(counter, terms, self.level(meter))

    def correct(self, event_id: str, units: int | None) -> tuple[int, int] | None:
        """Return the units taken back and how many of them were billable; None if the event has fewer units."""
        event = self.events[event_id]
        taken = event.left if units is None else units
        if not 0 < taken <= event.left:
            return None
        counter = self.counters[event.meter, event.start]
        billable = min(taken, counter.billable)
        counter.used -= taken
        counter.billable -= billable
        if counter.terms.included is None or counter.used - counter.billable <= counter.terms.included:
            counter.exceeded_at = None
        event.left -= taken
        return taken, billable


def _charged(counter: Counter, terms: Terms, units: int) -> int:
    """Return how many of `units` more are charged."""
    if terms.included is None or terms.beyond != "charge":
        return 0
    return max(0, units - max(0, terms.included - (counter.used - counter.billable)))


def _raise_peak(counter: Counter, terms: Terms, level: int) -> None:
    if terms.beyond == "charge" and terms.included is not None:
        counter.billable += max(0, level - max(counter.used, terms.included))
    counter.used = max(counter.used, level)


def _month(anchor: datetime, months: int) -> datetime:
    """Return the same day and time so many months later, or the last day of a shorter month."""
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)
