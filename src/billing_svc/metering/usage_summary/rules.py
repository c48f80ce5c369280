"""The content of a usage summary, and its period. Pure: no I/O, `now` is an argument."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from billing_svc.catalog import parts
from billing_svc.metering.quota import periods, terms
from billing_svc.metering.quota import rules as quota_rules


@dataclass(frozen=True, slots=True)
class OperationShare:
    """What an operation used of a meter on a day (UTC), less corrections; the operation is "" for the meter itself.

    A correction counts for the operation and the day of the event that it corrects, so that no day becomes negative
    because an event of another day was corrected on it.
    """

    meter: str
    operation: str
    day: date
    used: int
    events: int


@dataclass(frozen=True, slots=True)
class KeptCounter:
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
class MeterSummary:
    """The usage of a meter in a period, with its terms."""

    meter: str
    definition: parts.Meter
    under: terms.EffectiveTerms
    allowance: terms.Allowance
    counter: quota_rules.Counter
    grace_ends_at: datetime | None
    override: terms.Override | None
    shares: tuple[OperationShare, ...] = ()

    @property
    def matters(self) -> bool:
        """Say whether the plan has the meter, or it was used although the plan does not."""
        counter = self.counter
        return self.allowance.limit is not None or any((counter.used, counter.level, counter.reserved))


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """What an account used in a period, with an entry for each meter asked for; `under`: the last terms in it."""

    under: terms.EffectiveTerms
    lines: tuple[MeterSummary, ...]


def past_period(
    kept: Sequence[KeptCounter], breaks: Sequence[datetime], derived: periods.Period, at: datetime
) -> periods.Period:
    """Return the past period that contains `at`; `breaks` are those of its terms, and the present period's start.

    The stored counters decide, because the terms of today may differ from those of then. A counter keeps the end that
    was expected when it was last written; if a subscription began, ended or was moved before that, the period ended
    there too. If no counter covers the instant, the period follows from today's terms.
    """
    covering = [one for one in kept if one.period.start <= at < _ended(one.period, breaks).end]
    if not covering:
        return _ended(derived, breaks)
    return _ended(max(covering, key=lambda one: (one.period.start, one.updated_at)).period, breaks)


def by_operation(shares: Iterable[OperationShare]) -> list[OperationShare]:
    """Return one share for each operation, whatever the day, the largest first."""
    return sorted(_summed(shares, by_day=False), key=lambda one: (-one.used, one.operation))


def by_day(shares: Iterable[OperationShare]) -> list[OperationShare]:
    """Return one share for each day, whatever the operation, in order."""
    return sorted(_summed(shares, by_day=True), key=lambda one: one.day)


def _summed(shares: Iterable[OperationShare], *, by_day: bool) -> list[OperationShare]:
    sums: dict[object, OperationShare] = {}
    for one in shares:
        key = one.day if by_day else one.operation
        so_far = sums.get(key)
        used, events = (so_far.used, so_far.events) if so_far is not None else (0, 0)
        sums[key] = OperationShare(one.meter, one.operation, one.day, used + one.used, events + one.events)
    # Events with a retry_attempt count as nothing, so an entry made of them alone is left out.
    return [one for one in sums.values() if one.used or one.events]


def _ended(period: periods.Period, breaks: Iterable[datetime]) -> periods.Period:
    return period.clipped(None, min((one for one in breaks if one > period.start), default=None))
