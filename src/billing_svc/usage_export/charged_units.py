"""Compares the units that were sent to a meter with the units that invoices charge. Pure.

Sums decide: a meter counts what it has accepted only later, so a line may be there and lack units. Lines whose periods
overlap are compared together, with the reports whose timestamps are within them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from billing_svc.stripe.invoice_charges import ChargeState

# Bounds on the search for the reports that a line lacks: sums that are tried, and the newest reports that are used.
SUMS_MAX = 5_000
SEARCHED_MAX = 200


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a meter on an invoice, or a pending item that the next invoice takes."""

    start: datetime
    end: datetime
    units: int
    state: ChargeState


@dataclass(frozen=True, slots=True)
class SentUnits:
    """A report whose units were sent to the meter; `at` is the instant for which Stripe bills it.

    `is_open`: an item of the subscription will still bill it, so that no line is missing yet.
    """

    report_id: str
    at: datetime
    units: int
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class ReportCharge:
    """What became of a report's units; the numbers add up to its units.

    `waiting`: a draft will decide. `unbilled`: no invoice charges them, and none will.
    """

    charged: int = 0
    lost: int = 0
    forgiven: int = 0
    waiting: int = 0
    unbilled: int = 0


@dataclass(frozen=True, slots=True)
class Surplus:
    """Units that lines charge although they were not sent; `report_id` is a report of these lines, if there is one."""

    start: datetime
    units: int
    report_id: str | None


@dataclass(frozen=True, slots=True)
class UnitsComparison:
    """The result: what became of each report that is not open, and what is charged too much."""

    reports: dict[str, ReportCharge]
    surplus: list[Surplus]


@dataclass(slots=True)
class _Span:
    """Lines whose periods overlap, and the reports within them."""

    start: datetime
    end: datetime
    lines: list[Line]
    reports: list[SentUnits] = field(default_factory=list)

    def sum(self, state: ChargeState) -> int:
        return sum(line.units for line in self.lines if line.state is state)

    @property
    def is_counted(self) -> bool:
        """Say whether its usage is counted for the last time."""
        return all(line.state is not ChargeState.WAITING for line in self.lines)


def compare(sent: Sequence[SentUnits], lines: Iterable[Line]) -> UnitsComparison:
    """Return what became of the reports of one meter of a subscription; `sent` is in the order of sending."""
    spans = _spans(lines)
    uncovered: list[SentUnits] = []
    for report in sent:
        # `<=` at the end: if a subscription is ended at once, the last event's timestamp can be the second of the end.
        holding = [span for span in spans if span.start <= report.at <= span.end]
        if holding:
            holding[-1].reports.append(report)
        elif not report.is_open:
            uncovered.append(report)
    result = UnitsComparison({}, [])
    # Stripe makes no line for a sum of 0.
    is_nothing = sum(report.units for report in uncovered) == 0
    for report in uncovered:
        result.reports[report.report_id] = (
            ReportCharge(charged=report.units) if is_nothing else ReportCharge(unbilled=report.units)
        )
    for span in spans:
        _compare_span(span, result)
    return result


def _spans(lines: Iterable[Line]) -> list[_Span]:
    spans: list[_Span] = []
    for line in sorted(lines, key=lambda line: (line.start, line.end)):
        last = spans[-1] if spans else None
        if last is not None and (line.start < last.end or line.start == last.start):
            last.lines.append(line)
            last.end = max(last.end, line.end)
        else:
            spans.append(_Span(line.start, line.end, [line]))
    return spans


def _compare_span(span: _Span, result: UnitsComparison) -> None:
    charged, lost = span.sum(ChargeState.CHARGED), span.sum(ChargeState.LOST)
    sent = sum(report.units for report in span.reports)
    missing = max(0, sent) - charged - lost  # Stripe bills nothing for a negative sum
    forgiven = min(max(0, missing), span.sum(ChargeState.FORGIVEN))
    unbilled: tuple[SentUnits, ...] = ()
    if span.is_counted and missing != forgiven:
        unbilled = _that_add_up_to(missing - forgiven, span.reports[::-1])
    taken = {report.report_id for report in unbilled}
    for report in unbilled:
        result.reports[report.report_id] = ReportCharge(unbilled=report.units)
    rest = [report for report in span.reports if report.report_id not in taken]
    left = missing - forgiven - sum(report.units for report in unbilled)
    after = max(0, left)
    room = [charged, lost, forgiven, 0 if span.is_counted else after, after if span.is_counted else 0]
    result.reports.update(_share(rest, room))
    if left < 0:
        latest = span.reports[-1].report_id if span.reports else None
        result.surplus.append(Surplus(span.start, -left, latest))


def _that_add_up_to(wanted: int, newest_first: Sequence[SentUnits]) -> tuple[SentUnits, ...]:
    """Return whole reports with this sum, the newest if there is a choice; else as many as fit into it.

    The newest were counted last, so these are missing. Which of them it is does not change the amount.
    """
    total = 0
    for number, report in enumerate(newest_first, 1):
        total += report.units
        if total == wanted:
            return tuple(newest_first[:number])
    sums: dict[int, tuple[SentUnits, ...]] = {0: ()}
    for report in newest_first[:SEARCHED_MAX]:
        for known, those in list(sums.items()):
            sums.setdefault(known + report.units, (*those, report))
        if wanted in sums:
            return sums[wanted]
        if len(sums) > SUMS_MAX:
            break
    found: list[SentUnits] = []
    for report in newest_first:
        if 0 < report.units <= wanted:
            found.append(report)
            wanted -= report.units
    return tuple(found)


def _share(reports: Sequence[SentUnits], room: list[int]) -> dict[str, ReportCharge]:
    """Share the units among charged, lost, forgiven, waiting and unbilled, the oldest reports first."""
    found: dict[str, ReportCharge] = {}
    for report in reports:
        parts, left = [0] * len(room), report.units
        if left < 0:
            parts[0], left = left, 0  # it has lowered the line
            room[0] -= report.units
        for number in range(len(room)):
            parts[number] += min(left, room[number])
            room[number] -= min(left, room[number])
            left -= parts[number] if report.units > 0 else 0
        parts[0] += left  # a sum below zero: nothing is charged, and nothing is missing
        found[report.report_id] = ReportCharge(*parts)
    return found
