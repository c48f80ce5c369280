"""What does not agree about usage: its kinds, and those that our own tables tell."""

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_svc.usage_export import counters, rules, states

# Older periods are paid for and closed; a drift of theirs was shown when they were not.
LOOKED_BACK = timedelta(days=100)
# An invoice is final by then, and nothing of its period is on the way any more.
SETTLED_AFTER = timedelta(hours=3)


class DiscrepancyKind(enum.StrEnum):
    """What does not agree."""

    UNSEALED = "unsealed"  # billable units that are in no slice
    SLICES = "slices"  # slices that do not add up to what is sealed
    NOT_SENT = "not_sent"  # slices of a past period that Stripe does not have yet
    FAILED = "failed"  # slices that Stripe refused or lost
    METER = "meter"  # the meter has other units than it was sent
    ITEM = "item"  # an invoice item that is not there, or has another amount
    UNINVOICED = "uninvoiced"  # an invoice item that is on no invoice, and none will come
    LINE = "line"  # an invoice charges other units than its meter was sent


@dataclass(frozen=True, slots=True)
class UsageDiscrepancy:
    """One disagreement about a counter: `ours` and `theirs` in units, of an item in minor units."""

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
    """What an invoice charges of a meter, and for which time."""

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
    """Return a disagreement about a counter."""
    return UsageDiscrepancy(
        kind, counter.account_id, counter.meter, counter.period_start, ours, theirs, detail, event_name, report_id
    )


def within(
    counter: counters.UnreportedCounter, own: Sequence[rules.UsageReport], now: datetime
) -> list[UsageDiscrepancy]:
    """Compare our own tables: what was recorded with its slices."""
    drifts = []
    total = sum(one.units for one in own)
    if counter.billable != counter.sealed:
        detail = f"{counter.billable - counter.sealed} billable units are in no slice yet"
        drifts.append(of(DiscrepancyKind.UNSEALED, counter, counter.billable, counter.sealed, detail))
    if total != counter.sealed or any(after.from_units != before.to_units for before, after in itertools.pairwise(own)):
        detail = f"the slices add up to {total}"
        drifts.append(of(DiscrepancyKind.SLICES, counter, counter.sealed, total, detail))
    is_past = now >= counter.period_end + SETTLED_AFTER
    for one in own:
        about = {"event_name": one.stripe_event_name, "report_id": one.report_id}
        if one.state is states.ReportState.FAILED:
            drifts.append(of(DiscrepancyKind.FAILED, counter, one.units, 0, one.error or "", **about))
        elif one.state in states.OPEN and is_past:
            detail = one.error or f"{one.state} since {one.sealed_at.isoformat(timespec='minutes')}"
            drifts.append(of(DiscrepancyKind.NOT_SENT, counter, one.units, 0, detail, **about))
    return drifts


def invoiced(
    counter: counters.UnreportedCounter,
    sent: Sequence[rules.UsageReport],
    lines: Sequence[DiscrepancyKey],
    is_open: Callable[[datetime], bool],
) -> tuple[int, int]:
    """Return how many units a counter's invoices should charge, and how many they do; `sent` is all of the meter's.

    Quota and billing periods need not have the same bounds (a month since a 31st, where Stripe goes by the 28th). So
    each line is compared with the slices that are stamped within it, and belongs to the last of their counters. What
    no line has is missing, unless its billing period is still open.
    """
    charged: dict[tuple[datetime, datetime], int] = {}
    for line in lines:
        charged[line.start, line.end] = charged.get((line.start, line.end), 0) + line.units
    within_line: dict[tuple[datetime, datetime], list[rules.UsageReport]] = {span: [] for span in charged}
    ours = theirs = 0
    for one in sent:
        # The second of the end is the last one of a subscription that ends at once.
        holding = [span for span in charged if span[0] <= one.reported_for <= span[1]]
        if holding:
            within_line[max(holding)].append(one)
        elif one.period_start == counter.period_start and not is_open(one.reported_for):
            ours += one.units
    for span, held in within_line.items():
        last = max((one.period_start for one in held), default=None)
        if last == counter.period_start or (last is None and counter.period_start <= span[0] < counter.period_end):
            ours += max(0, sum(one.units for one in held))
            theirs += charged[span]
    return ours, theirs
