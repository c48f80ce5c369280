"""Which units invoices charge: every small case against a plain count, and the cases that matter by hand."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from billing_svc.stripe.invoice_charges import ChargeState
from billing_svc.usage_export.charged_units import Line, ReportCharge, SentUnits, UnitsComparison, compare

START = datetime(2026, 11, 1, tzinfo=UTC)
CHARGED, LOST, FORGIVEN, WAITING = ChargeState.CHARGED, ChargeState.LOST, ChargeState.FORGIVEN, ChargeState.WAITING


def at(day: float) -> datetime:
    return START + timedelta(days=day)


def line(start: float, end: float, units: int, state: ChargeState = CHARGED) -> Line:
    return Line(at(start), at(end), units, state)


def sent(*reports: tuple[float, int]) -> list[SentUnits]:
    return [SentUnits(f"r{number}", at(day), units) for number, (day, units) in enumerate(reports, 1)]


def unbilled(found: UnitsComparison) -> dict[str, int]:
    return {key: charge.unbilled for key, charge in found.reports.items() if charge.unbilled}


STATES = tuple(itertools.product(range(4), repeat=4))


@pytest.mark.parametrize("units", list(itertools.product((1, 2, 3), repeat=2)))
def test_every_small_case_adds_up(units: tuple[int, int]) -> None:
    """Two reports and lines of each state with 0 to 3 units."""
    total = sum(units)
    for charged, lost, forgiven, waiting in STATES:
        lines = [line(0, 30, charged), line(0, 30, lost, LOST), line(0, 30, forgiven, FORGIVEN)]
        lines += [line(0, 30, waiting, WAITING)] if waiting else []
        found = compare(sent((1, units[0]), (2, units[1])), lines)
        charges = list(found.reports.values())
        for charge, own in zip(sorted(found.reports), units, strict=True):
            got = found.reports[charge]
            assert got.charged + got.lost + got.forgiven + got.waiting + got.unbilled == own
        missing = max(0, total - charged - lost)
        assert sum(one.charged + one.lost for one in charges) == min(total, charged + lost)
        assert sum(one.forgiven for one in charges) == min(missing, forgiven)
        rest = missing - min(missing, forgiven)
        assert sum(one.unbilled for one in charges) == (0 if waiting else rest)
        assert sum(one.waiting for one in charges) == (rest if waiting else 0)
        assert sum(one.units for one in found.surplus) == max(0, charged + lost - total)


def test_a_line_that_lacks_the_newest_report() -> None:
    assert unbilled(compare(sent((1, 100), (2, 400)), [line(0, 3, 100)])) == {"r2": 400}


def test_a_line_that_lacks_a_report_between_others() -> None:
    assert unbilled(compare(sent((1, 100), (2, 7), (2.5, 30)), [line(0, 3, 130)])) == {"r2": 7}


def test_a_line_that_lacks_a_correction_charges_too_much() -> None:
    assert unbilled(compare(sent((1, 50), (2, -18)), [line(0, 3, 50)])) == {"r2": -18}


def test_a_correction_that_was_counted_is_charged() -> None:
    found = compare(sent((1, 50), (2, -18)), [line(0, 3, 32)])
    assert found.reports == {"r1": ReportCharge(charged=50), "r2": ReportCharge(charged=-18)}
    assert not found.surplus


def test_the_same_plan_twice_with_another_between() -> None:
    """Its item was removed and added again: neither line charges what was sent between."""
    found = compare(sent((1, 3), (5, 4), (12, 2)), [line(0, 4, 3), line(10, 30, 2)])
    assert unbilled(found) == {"r2": 4}


def test_lines_of_overlapping_periods_are_compared_together() -> None:
    assert not unbilled(compare(sent((1, 3), (12, 2)), [line(0, 4, 3), line(0, 30, 2)]))


def test_an_open_report_is_not_compared_and_a_report_without_a_line_is_unbilled() -> None:
    reports = [SentUnits("open", at(5), 3, is_open=True), SentUnits("gone", at(2), 4)]
    assert compare(reports, []).reports == {"gone": ReportCharge(unbilled=4)}


def test_what_adds_up_to_nothing_has_no_line() -> None:
    assert not unbilled(compare(sent((1, 10), (2, -10)), []))


def test_what_was_forgiven_stays_so_and_the_rest_is_unbilled() -> None:
    found = compare(sent((1, 100), (2, 400)), [line(0, 3, 100, FORGIVEN)])
    assert found.reports == {"r1": ReportCharge(forgiven=100), "r2": ReportCharge(unbilled=400)}


def test_what_was_given_up_is_charged_and_lost() -> None:
    assert compare(sent((1, 9)), [line(0, 3, 9, LOST)]).reports == {"r1": ReportCharge(lost=9)}


def test_a_draft_decides_nothing_yet() -> None:
    assert compare(sent((1, 9)), [line(0, 3, 4, WAITING)]).reports == {"r1": ReportCharge(waiting=9)}


def test_a_difference_that_no_reports_add_up_to_is_never_more_than_what_is_missing() -> None:
    found = compare(sent((1, 10), (2, 400)), [line(0, 3, 5)])
    assert unbilled(found) == {"r1": 5, "r2": 400}
    assert found.reports["r1"].charged == 5


def test_many_reports_are_searched_within_bounds() -> None:
    reports = sent(*((number / 100, 3 + number % 7) for number in range(700)))
    total = sum(report.units for report in reports)
    assert sum(unbilled(compare(reports, [line(0, 8, total - 1)])).values()) == 1
