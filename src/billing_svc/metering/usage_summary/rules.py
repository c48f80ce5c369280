"""What a statement says, and which period it is of. Pure: no I/O, `now` is an argument."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from billing_svc.catalog import model
from billing_svc.metering.quota import periods, terms
from billing_svc.metering.quota import rules as quota_rules


@dataclass(frozen=True, slots=True)
class Share:
    """What one operation used of a meter on one day (UTC), less corrections; the operation is "" for the meter itself.

    A correction counts for the operation and the day of the event that it corrects: a day's bar then shows what is left
    of that day's work, and no day is negative because another one was mended on it.
    """

    meter: str
    operation: str
    day: date
    used: int
    events: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A counter with the terms that it was last written under."""

    meter: str
    period: periods.Period
    counter: quota_rules.Counter
    catalog_version: int
    plan: str
    quantity: int
    pay_as_you_go: bool
    included: int | None
    overridden: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Line:
    """Where one meter stands."""

    meter: str
    definition: model.Meter
    under: terms.Terms
    allowance: terms.Allowance
    counter: quota_rules.Counter
    grace_ends_at: datetime | None
    override: terms.Override | None
    shares: tuple[Share, ...] = ()

    @property
    def matters(self) -> bool:
        """Say whether the plan has the meter, or it was used nevertheless."""
        counter = self.counter
        return self.allowance.limit is not None or any((counter.used, counter.level, counter.reserved))


@dataclass(frozen=True, slots=True)
class Statement:
    """What an account used in one period, one line for each meter asked; `under`: the last terms in it."""

    under: terms.Terms
    lines: tuple[Line, ...]


def past_period(
    kept: Sequence[Kept], standing: terms.Standing, derived: periods.Period, current: periods.Period, at: datetime
) -> periods.Period:
    """Return the period before `current` that contains `at`.

    The counters know better than today's terms, which may be others than those of then. But a counter keeps the end
    that was foreseen when it was last written, and where a subscription began or ended meanwhile, the period did too.
    Where no counter covers the instant, today's terms say which period it would have been.
    """
    breaks = [current.start]
    for subscription in standing.subscriptions:
        if subscription.effective_from != subscription.effective_until:
            breaks += [one for one in (subscription.effective_from, subscription.effective_until) if one is not None]
    covering = [one for one in kept if one.period.start <= at < _ended(one.period, breaks).end]
    if not covering:
        return _ended(derived, breaks)
    return _ended(max(covering, key=lambda one: (one.period.start, one.updated_at)).period, breaks)


def by_operation(shares: Iterable[Share]) -> list[Share]:
    """Return one share for each operation, whatever the day, the largest first."""
    return sorted(_summed(shares, by_day=False), key=lambda one: (-one.used, one.operation))


def by_day(shares: Iterable[Share]) -> list[Share]:
    """Return one share for each day, whatever the operation, in order."""
    return sorted(_summed(shares, by_day=True), key=lambda one: one.day)


def _summed(shares: Iterable[Share], *, by_day: bool) -> list[Share]:
    sums: dict[object, Share] = {}
    for one in shares:
        key = one.day if by_day else one.operation
        so_far = sums.get(key)
        used, events = (so_far.used, so_far.events) if so_far is not None else (0, 0)
        sums[key] = Share(one.meter, one.operation, one.day, used + one.used, events + one.events)
    # Of a repetition by retry_attempt alone nothing is to be shown.
    return [one for one in sums.values() if one.used or one.events]


def _ended(period: periods.Period, breaks: Iterable[datetime]) -> periods.Period:
    return period.clipped(None, min((one for one in breaks if one > period.start), default=None))
