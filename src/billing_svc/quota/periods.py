"""Quota periods: half-open intervals of a month, in UTC, that advance by the clock alone."""

from dataclasses import dataclass
from datetime import UTC, datetime

from dateutil.relativedelta import relativedelta


@dataclass(frozen=True, slots=True)
class Period:
    """The interval [start, end)."""

    start: datetime
    end: datetime

    def clipped(self, start: datetime | None, end: datetime | None) -> "Period":
        """Return the part of it inside [start, end); a bound left out does not clip."""
        return Period(
            self.start if start is None else max(self.start, start),
            self.end if end is None else min(self.end, end),
        )


def calendar_month(at: datetime) -> Period:
    """Return the calendar month that contains `at`."""
    start = datetime(at.year, at.month, 1, tzinfo=UTC)
    return Period(start, start + relativedelta(months=1))


def anchored_month(anchor: datetime, at: datetime) -> Period:
    """Return the month that contains `at`, counted from `anchor`, which may lie after it (a trial).

    Each bound is a whole number of months from the anchor itself, never from the step before: Jan 31, Feb 28, Mar 31.
    """
    months = (at.year - anchor.year) * 12 + at.month - anchor.month
    if anchor + relativedelta(months=months) > at:
        months -= 1
    return Period(anchor + relativedelta(months=months), anchor + relativedelta(months=months + 1))
