"""The kinds of usage discrepancies, and the pure comparisons."""

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from billing_svc.usage_export import charged_units, counters, rules, states

# Older periods are compared only if something in them is still open, or if an earlier instant is asked for.
LOOKED_BACK = timedelta(days=100)
# After a period's end: by then its invoice is final, and all sent events have arrived.
SETTLED_AFTER = timedelta(hours=3)


class DiscrepancyKind(enum.StrEnum):
    """What differs."""

    UNSEALED = "unsealed"  # billable units that are in no usage report
    SLICES = "slices"  # reports whose units do not add up to the accrued units
    NOT_SENT = "not_sent"  # reports of a past period that Stripe does not have yet
    FAILED = "failed"  # reports that Stripe refused or lost
    METER = "meter"  # the meter has other units than were sent to it
    ITEM = "item"  # an invoice item that is missing or has another amount
    UNINVOICED = "uninvoiced"  # an invoice item that is on no invoice, and no invoice will take it
    LINE = "line"  # an invoice charges other units than were sent to its meter
    UNREADABLE = "unreadable"  # an object at Stripe that the comparison needs cannot be read


_REPAIRABLE = frozenset(
    {DiscrepancyKind.UNSEALED, DiscrepancyKind.NOT_SENT, DiscrepancyKind.FAILED, DiscrepancyKind.UNINVOICED}
)
_REPAIRABLE_IF_TOO_LITTLE = frozenset({DiscrepancyKind.METER, DiscrepancyKind.LINE})


@dataclass(frozen=True, slots=True)
class UsageDiscrepancy:
    """A discrepancy of a counter; `ours` and `theirs` are units, for an invoice item minor units."""

    kind: DiscrepancyKind
    account_id: str
    meter: str
    period_start: datetime
    ours: int
    theirs: int
    detail: str
    event_name: str = ""
    report_id: str = ""
    # The end of the counter's period, and the terms of its last write.
    period_end: datetime | None = None
    plan: str = ""
    catalog_version: int = 0
    # Of LINE: the reports that no invoice charges.
    unbilled: tuple[str, ...] = ()

    @property
    def object_id(self) -> str:
        """Return what the discrepancy is about: meter, quota period, and report or meter at Stripe."""
        about = (self.meter, self.period_start.astimezone(UTC).isoformat(), self.report_id or self.event_name)
        return " ".join(part for part in about if part)

    def is_under_way(self, now: datetime) -> bool:
        """Say whether the worker is about to settle it: it seals units of an open period every minute or so."""
        return (
            self.kind is DiscrepancyKind.UNSEALED
            and self.period_end is not None
            and now < self.period_end + SETTLED_AFTER
        )

    @property
    def is_repairable(self) -> bool:
        """Say whether `--fix` sends or charges something because of it."""
        is_too_little = self.theirs < self.ours
        return self.kind in _REPAIRABLE or (self.kind in _REPAIRABLE_IF_TOO_LITTLE and is_too_little)


def period_of(object_id: str) -> datetime:
    """Return the beginning of the quota period that an `object_id` names."""
    return datetime.fromisoformat(object_id.split(" ")[1])


@dataclass(frozen=True, slots=True)
class ObjectDiscrepancy:
    """An object of Stripe's that differs from its row here; `detail` lists the differing columns, ours first.

    `amount` is the money that is wrong, in minor units of `currency`, where it is known.
    """

    kind: str
    account_id: str
    object_id: str
    detail: str
    amount: int | None = None
    currency: str | None = None


def of(
    kind: DiscrepancyKind,
    counter: counters.UnreportedCounter,
    ours: int,
    theirs: int,
    detail: str,
    *,
    event_name: str = "",
    report_id: str = "",
) -> UsageDiscrepancy:
    """Return a discrepancy of a counter."""
    return UsageDiscrepancy(
        kind,
        counter.account_id,
        counter.meter,
        counter.period_start,
        ours,
        theirs,
        detail,
        event_name,
        report_id,
        counter.period_end,
        counter.plan,
        counter.catalog_version,
    )


def within(
    counter: counters.UnreportedCounter, own: Sequence[rules.UsageReport], now: datetime
) -> list[UsageDiscrepancy]:
    """Compare our own tables: a counter with its usage reports."""
    found = []
    total = sum(report.units for report in own)
    if counter.billable != counter.sealed:
        detail = f"{counter.billable - counter.sealed} billable units are in no usage report yet"
        found.append(of(DiscrepancyKind.UNSEALED, counter, counter.billable, counter.sealed, detail))
    if total != counter.sealed or any(after.from_units != before.to_units for before, after in itertools.pairwise(own)):
        detail = f"the usage reports add up to {total} units"
        found.append(of(DiscrepancyKind.SLICES, counter, counter.sealed, total, detail))
    is_past = now >= counter.period_end + SETTLED_AFTER
    for report in own:
        about = {"event_name": report.stripe_event_name, "report_id": report.report_id}
        if report.state is states.ReportState.FAILED:
            detail = f"{report.error or ''}; to forgive it: {write_off_command(report)}"
            found.append(of(DiscrepancyKind.FAILED, counter, report.units, 0, detail, **about))
        elif report.state in states.OPEN and is_past:
            detail = report.error or f"{report.state} since {report.sealed_at.isoformat(timespec='minutes')}"
            found.append(of(DiscrepancyKind.NOT_SENT, counter, report.units, 0, detail, **about))
    return found


def write_off_command(report: rules.UsageReport) -> str:
    """Return the command that writes a report off."""
    return f"`billing-svc usage write-off {report.report_id} --note WHY`"


def invoiced(
    counter: counters.UnreportedCounter,
    own: Sequence[rules.UsageReport],
    sent: Sequence[rules.UsageReport],
    comparison: charged_units.UnitsComparison,
) -> list[UsageDiscrepancy]:
    """Return the difference between a counter's reports and what the invoices charge.

    `own` are the counter's reports of a meter, `sent` all reports that were sent to it, also of other counters. What an
    invoice charges too much counts for the latest counter of its reports; without any, for that in which its line
    begins.
    """
    charges = [(report, comparison.reports.get(report.report_id, charged_units.ReportCharge())) for report in own]
    missing = sum(charge.unbilled for _, charge in charges)
    whole = tuple(report.report_id for report, charge in charges if charge.unbilled == report.units)
    periods = {report.report_id: report.period_start for report in sent}
    for surplus in comparison.surplus:
        begun = counter.period_start <= surplus.start < counter.period_end
        if begun if surplus.report_id is None else periods[surplus.report_id] == counter.period_start:
            missing -= surplus.units
    if missing == 0:
        return []
    ours = sum(report.units for report in own if report.state is states.ReportState.SENT)
    name = own[0].stripe_event_name
    detail = f"the invoices of {own[0].subscription_id} charge {ours - missing} units, but {ours} were sent to {name}"
    found = of(DiscrepancyKind.LINE, counter, ours, ours - missing, detail, event_name=name)
    return [replace(found, unbilled=whole)]
