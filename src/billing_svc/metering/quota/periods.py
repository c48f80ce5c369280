"""Quota periods: half-open intervals of a month, in UTC, that advance by the clock alone."""

import calendar
import functools
from datetime import UTC, datetime

from billing_svc.platform import values

# The days that every month has.
_DAYS_MIN = 28


@values.value
class Period:
    """The interval [start, end)."""

    start: datetime
    end: datetime

    def clipped(self, start: datetime | None, end: datetime | None) -> "Period":
        """Return the part of the period inside [start, end); a bound of None does not clip."""
        begins = self.start if start is None or start <= self.start else start
        ends = self.end if end is None or end >= self.end else end
        return self if begins is self.start and ends is self.end else Period(begins, ends)


def calendar_month(at: datetime) -> Period:
    """Return the calendar month that contains `at`."""
    return _calendar_month(at.year, at.month)


def anchored_month(anchor: datetime, at: datetime) -> Period:
    """Return the month that contains `at`, counted from `anchor`, which may lie after it (a trial).

    Each bound is a whole number of months from the anchor itself, not from the bound before: Jan 31, Feb 28, Mar 31.
    """
    months = (at.year - anchor.year) * 12 + at.month - anchor.month
    start = _shifted(anchor, months)
    if start > at:
        return Period(_shifted(anchor, months - 1), start)
    return Period(start, _shifted(anchor, months + 1))


@functools.lru_cache(maxsize=64)
def _calendar_month(year: int, month: int) -> Period:
    start = datetime(year, month, 1, tzinfo=UTC)
    return Period(start, _shifted(start, 1))


def _shifted(anchor: datetime, months: int) -> datetime:
    """Return the instant some months after (or before) another; a day that the month lacks becomes its last day.

    Written here because each decision calls it: a calendar library takes ten times as long.
    """
    years, month = divmod(anchor.month - 1 + months, 12)
    year, day = anchor.year + years, anchor.day
    if day > _DAYS_MIN:
        day = min(day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year, month + 1, day)  # by keywords it would take twice as long
