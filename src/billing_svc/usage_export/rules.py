"""Pure rules of usage reports: how billable units are split, which timestamp a report has, when to try again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from billing_svc.platform import backoff
from billing_svc.usage_export import states

RETRY_FIRST = timedelta(seconds=1)
# A period's reports can be sent for about an hour after its end, so a retry must soon notice that an outage is over.
RETRY_MOST = timedelta(minutes=5)

# A plan and its catalog version.
PlanVersion: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ChargeTerms:
    """The terms and the customer that units are charged to; without a subscription an invoice item charges them."""

    plan: str
    catalog_version: int
    event_name: str
    customer_id: str
    subscription_id: str | None

    @property
    def terms(self) -> PlanVersion:
        """Return the plan and catalog version that set the price."""
        return self.plan, self.catalog_version


@dataclass(frozen=True, slots=True)
class Piece:
    """The part (from_units, to_units] of a counter's billable units, under one charge; to < from after a correction."""

    charge: ChargeTerms
    from_units: int
    to_units: int
    # Takes back units that nothing charged: nothing is credited for it.
    is_uncharged: bool = False

    @property
    def units(self) -> int:
        """Return how many units the piece adds; negative after a correction."""
        return self.to_units - self.from_units


@dataclass(frozen=True, slots=True)
class Lowered:
    """What a correction does to a counter: its billable units afterwards, and by how many they were lowered."""

    billable: int
    units: int


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A usage report as stored."""

    account_id: str
    report_id: str
    meter: str
    period_start: datetime
    slice: int
    from_units: int
    to_units: int
    plan: str
    catalog_version: int
    subscription_id: str | None
    customer_id: str
    stripe_event_name: str
    reported_for: datetime
    period_end: datetime
    identifier: str
    state: states.ReportState
    attempts: int
    next_attempt_at: datetime
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None
    refused_at: datetime | None
    error: str | None
    amount: int | None
    invoice_item_id: str | None
    sealed_at: datetime

    @property
    def units(self) -> int:
        """Return how many units the report adds to the meter; negative after a correction."""
        return self.to_units - self.from_units

    @property
    def charge(self) -> ChargeTerms:
        """Return the charge of the report's units."""
        return ChargeTerms(
            plan=self.plan,
            catalog_version=self.catalog_version,
            event_name=self.stripe_event_name,
            customer_id=self.customer_id,
            subscription_id=self.subscription_id,
        )

    @property
    def is_growing(self) -> bool:
        """Say whether the report was never sent, so that units may be added to it."""
        return self.state is states.ReportState.SEALED and self.attempts == 0

    @property
    def minute(self) -> datetime:
        """Return the beginning of its timestamp's minute: Stripe's totals cover whole minutes."""
        return self.reported_for.replace(second=0, microsecond=0)


@dataclass(frozen=True, slots=True)
class AccruedUnits:
    """The units of a counter that are in reports under one charge."""

    charge: ChargeTerms
    units: int


def billed_by_terms(entries: Iterable[tuple[str, int, int]]) -> dict[PlanVersion, int]:
    """Return the billable units under each terms, from entries that add units or (negative) take units back.

    As in `split_into_reports`, the units that became billable last are taken back first.
    """
    runs: list[tuple[PlanVersion, int]] = []
    for plan, catalog_version, units in entries:
        left = units
        while left < 0 and runs:
            terms, there = runs.pop()
            left += there
            if left > 0:
                runs.append((terms, left))
        if units > 0:
            runs.append(((plan, catalog_version), units))
    found: dict[PlanVersion, int] = {}
    for terms, units in runs:
        found[terms] = found.get(terms, 0) + units
    return found


def split_into_reports(
    sealed: int,
    billable: int,
    present: ChargeTerms,
    accrued: Sequence[AccruedUnits],
    owed: Sequence[AccruedUnits] = (),
    uncharged: Sequence[AccruedUnits] = (),
) -> list[Piece]:
    """Split the change from `sealed` to `billable` into pieces.

    An increase goes to the `owed` units of earlier charges first, then to the present charge. A decrease is taken from
    the units that were accrued last (`accrued` is sorted newest first), so that no meter's sum goes below zero: a
    correction after a change of plan lowers the bill of the plan that charged the units. Before that it is taken from
    units that were never charged (`uncharged`, a part of `accrued`), of whatever charge.
    """
    pieces: list[Piece] = []
    position = sealed
    for accrued_units in owed:
        units = min(accrued_units.units, billable - position)
        if units > 0:
            pieces.append(Piece(accrued_units.charge, position, position + units))
            position += units
    if position < billable:
        return [*pieces, Piece(present, position, billable)]
    taken: dict[ChargeTerms, int] = {}
    for accrued_units in uncharged:
        taken[accrued_units.charge] = accrued_units.units
        units = min(accrued_units.units, position - billable)
        if units > 0:
            pieces.append(Piece(accrued_units.charge, position, position - units, is_uncharged=True))
            position -= units
    for accrued_units in accrued:
        units = min(accrued_units.units - taken.get(accrued_units.charge, 0), position - billable)
        if units > 0:
            pieces.append(Piece(accrued_units.charge, position, position - units))
            position -= units
    if position > billable:  # not reached while the reports' units add up to `sealed`
        pieces.append(Piece(present, position, billable))
    return pieces


def stamp(now: datetime, start: datetime, end: datetime) -> datetime:
    """Return a report's timestamp: now, moved to the nearest whole second inside [start, end)."""
    last = (end - timedelta(microseconds=1)).replace(microsecond=0)
    first = start.replace(microsecond=0)
    if first < start:
        first += timedelta(seconds=1)
    return max(min(now.replace(microsecond=0), last), min(first, last))


def grown(
    report: UsageReport,
    piece: Piece,
    reported_for: datetime,
    period_end: datetime,
    next_attempt_at: datetime,
    now: datetime,
) -> states.Change:
    """Add a piece to a report that was never sent; a report whose units become 0 is void."""
    columns = states.Columns(
        to_units=piece.to_units,
        reported_for=reported_for,
        period_end=period_end,
        next_attempt_at=min(report.next_attempt_at, next_attempt_at),
    )
    return states.voided(now, **columns) if piece.to_units == report.from_units else states.Change(columns)


def retry_at(attempts: int, now: datetime, jitter: float) -> datetime:
    """Return when to try again: after 1 s, doubling up to five minutes, minus a random part of at most a half.

    `jitter` lies in [0, 1).
    """
    return backoff.retry_at(attempts, now, RETRY_FIRST, RETRY_MOST, jitter)
