"""The kinds of usage discrepancies, and the pure comparisons."""

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_svc.usage_export import counters, rules, states

# Older periods are paid and closed; a discrepancy in them was reported before.
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


@dataclass(frozen=True, slots=True)
class DiscrepancyKey:
    """An invoice line of a meter: its interval and its units."""

    start: datetime
    end: datetime
    units: int


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
        kind, counter.account_id, counter.meter, counter.period_start, ours, theirs, detail, event_name, report_id
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
    sent: Sequence[rules.UsageReport],
    lines: Sequence[DiscrepancyKey],
    is_open: Callable[[datetime], bool],
) -> tuple[int, int]:
    """Return the units that a counter's invoices should charge, and the units that they charge.

    `sent` are all reports of the meter. Quota and billing periods may begin on different days (a monthly quota period
    from a 31st, where Stripe bills on the 28th). So each line is compared with the reports whose timestamps are within
    it, and counts for the latest counter of these reports. A report within no line is missing, unless its billing
    period is open.
    """
    charged: dict[tuple[datetime, datetime], int] = {}
    for line in lines:
        charged[line.start, line.end] = charged.get((line.start, line.end), 0) + line.units
    within_line: dict[tuple[datetime, datetime], list[rules.UsageReport]] = {span: [] for span in charged}
    ours = theirs = 0
    for report in sent:
        # `<=` at the end: if a subscription is ended at once, the last event's timestamp can be the second of the end.
        holding = [span for span in charged if span[0] <= report.reported_for <= span[1]]
        if holding:
            within_line[max(holding)].append(report)
        elif report.period_start == counter.period_start and not is_open(report.reported_for):
            ours += report.units
    for span, held in within_line.items():
        last = max((report.period_start for report in held), default=None)
        if last == counter.period_start or (last is None and counter.period_start <= span[0] < counter.period_end):
            ours += max(0, sum(report.units for report in held))
            theirs += charged[span]
    return ours, theirs
