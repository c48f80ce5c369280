"""Months are counted from their anchor alone: they tile the time line and never drift."""

import calendar
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from billing_svc.metering.quota import periods

INSTANTS = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis adds it
TICK = timedelta(microseconds=1)
JANUARY_31 = datetime(2026, 1, 31, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "start", "end"),
    [
        ("2026-01-31T10:30", "2026-01-31T10:30", "2026-02-28T10:30"),
        ("2026-02-28T10:29", "2026-01-31T10:30", "2026-02-28T10:30"),
        ("2026-02-28T10:30", "2026-02-28T10:30", "2026-03-31T10:30"),
        ("2026-03-30T23:59", "2026-02-28T10:30", "2026-03-31T10:30"),
        ("2026-03-31T10:30", "2026-03-31T10:30", "2026-04-30T10:30"),
        ("2026-05-01T00:00", "2026-04-30T10:30", "2026-05-31T10:30"),
        ("2028-02-29T10:30", "2028-02-29T10:30", "2028-03-31T10:30"),
        ("2026-01-01T00:00", "2025-12-31T10:30", "2026-01-31T10:30"),
    ],
)
def test_a_month_from_the_31st_ends_on_each_month_s_last_day(at: str, start: str, end: str) -> None:
    expected = periods.Period(*(datetime.fromisoformat(one).replace(tzinfo=UTC) for one in (start, end)))
    assert periods.anchored_month(JANUARY_31, datetime.fromisoformat(at).replace(tzinfo=UTC)) == expected


@given(anchor=INSTANTS, at=INSTANTS)
@example(anchor=JANUARY_31, at=datetime(2026, 2, 28, 10, 30, tzinfo=UTC))
@example(anchor=JANUARY_31, at=datetime(2026, 3, 1, tzinfo=UTC))
def test_anchored_months_tile_the_time_line(anchor: datetime, at: datetime) -> None:
    period = periods.anchored_month(anchor, at)
    assert period.start <= at < period.end
    assert periods.anchored_month(anchor, period.start) == period
    assert periods.anchored_month(anchor, period.end - TICK) == period
    assert periods.anchored_month(anchor, period.end).start == period.end
    assert periods.anchored_month(anchor, period.start - TICK).end == period.start
    assert timedelta(days=28) <= period.end - period.start <= timedelta(days=31)


@given(anchor=INSTANTS, at=INSTANTS)
def test_anchored_months_never_drift(anchor: datetime, at: datetime) -> None:
    for bound in (periods.anchored_month(anchor, at).start, periods.anchored_month(anchor, at).end):
        last_day = calendar.monthrange(bound.year, bound.month)[1]
        assert bound.day == min(anchor.day, last_day)
        assert bound.time() == anchor.time()
        assert bound.tzinfo is UTC


@given(at=INSTANTS)
def test_calendar_months_tile_the_time_line(at: datetime) -> None:
    period = periods.calendar_month(at)
    assert period.start <= at < period.end
    assert (period.start.day, period.end.day) == (1, 1)
    assert periods.calendar_month(period.end).start == period.end
    assert periods.calendar_month(period.end - TICK) == period


def test_half_open_the_end_belongs_to_the_next() -> None:
    first = periods.calendar_month(datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    assert first.end == datetime(2027, 1, 1, tzinfo=UTC)
    assert periods.calendar_month(first.end).start == first.end
