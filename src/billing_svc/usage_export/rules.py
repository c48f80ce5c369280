"""Slices of a billable total: how it is cut, what it is stamped with, what it costs. Pure: `now` is an argument."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from billing_svc.platform import backoff
from billing_svc.usage_export import states

RETRY_FIRST = timedelta(seconds=1)
# A period's reports have about an hour: an outage's end must not go unnoticed for a large part of it.
RETRY_MOST = timedelta(minutes=5)

# A plan, and the catalog version that it was sold under.
PlanVersion: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Charge:
    """The terms that units are charged under, and who is charged; without a subscription, by an invoice item."""

    plan: str
    catalog_version: int
    event_name: str
    customer_id: str
    subscription_id: str | None

    @property
    def terms(self) -> PlanVersion:
        """Return whose price it is."""
        return self.plan, self.catalog_version


@dataclass(frozen=True, slots=True)
class Piece:
    """A part (from_units, to_units] of a billable total under one charge; after a correction it runs backwards."""

    charge: Charge
    from_units: int
    to_units: int

    @property
    def units(self) -> int:
        """Return what it adds."""
        return self.to_units - self.from_units


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A slice as stored."""

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
        """Return what it adds to the meter."""
        return self.to_units - self.from_units

    @property
    def charge(self) -> Charge:
        """Return what it is charged under."""
        return Charge(self.plan, self.catalog_version, self.stripe_event_name, self.customer_id, self.subscription_id)

    @property
    def is_growing(self) -> bool:
        """Say whether it was never sent, so that more may be added to it."""
        return self.state is states.ReportState.SEALED and self.attempts == 0

    @property
    def minute(self) -> datetime:
        """Return the beginning of the minute that it is stamped with: Stripe adds up whole minutes."""
        return self.reported_for.replace(second=0, microsecond=0)


@dataclass(frozen=True, slots=True)
class AccruedUnits:
    """The units of a counter that are sealed under one charge."""

    charge: Charge
    units: int


def billed_by_terms(entries: Iterable[tuple[str, int, int]]) -> dict[PlanVersion, int]:
    """Return the units that are billable under each terms, from what each entry added or, below 0, took back.

    As in `cut`, what became billable last is taken back first.
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
    sealed: int, billable: int, present: Charge, standing: Sequence[AccruedUnits], owed: Sequence[AccruedUnits] = ()
) -> list[Piece]:
    """Cut the way from `sealed` to `billable` into pieces.

    More goes to the present charge, but for what is still owed to earlier ones. Less is taken back from what was sealed
    last (`standing` has the newest first), so that no meter is ever asked to go below zero: a correction after a
    change of plan lowers the bill of the plan that charged.
    """
    pieces: list[Piece] = []
    position = sealed
    for one in owed:
        units = min(one.units, billable - position)
        if units > 0:
            pieces.append(Piece(one.charge, position, position + units))
            position += units
    if position < billable:
        return [*pieces, Piece(present, position, billable)]
    for one in standing:
        units = min(one.units, position - billable)
        if units > 0:
            pieces.append(Piece(one.charge, position, position - units))
            position -= units
    if position > billable:  # not reached while the slices add up to what is sealed
        pieces.append(Piece(present, position, billable))
    return pieces


def stamp(now: datetime, start: datetime, end: datetime) -> datetime:
    """Return the whole second inside [start, end) that a report is stamped with: now, or the period's last one."""
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
    """Add another piece to a slice that was never sent; one that has become nothing is void."""
    columns = states.Columns(
        to_units=piece.to_units,
        reported_for=reported_for,
        period_end=period_end,
        next_attempt_at=min(report.next_attempt_at, next_attempt_at),
    )
    return states.voided(now, **columns) if piece.to_units == report.from_units else states.Change(columns)


def retry_at(attempts: int, now: datetime, jitter: float) -> datetime:
    """Return when to try again: a second, doubling, at most five minutes, and less by a random part up to a half.

    `jitter` lies in [0, 1).
    """
    return backoff.retry_at(attempts, now, RETRY_FIRST, RETRY_MOST, jitter)
