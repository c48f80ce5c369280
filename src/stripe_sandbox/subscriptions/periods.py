"""Computes billing periods from an anchor: January 31, February 28, March 31."""

import datetime as dt
from typing import Any

from dateutil import relativedelta


def step(anchor: int, recurring: dict[str, Any], count: int) -> int:
    """Return the unix time `count` intervals after the anchor, on the anchor's day or a shorter month's last day."""
    amount = recurring["interval_count"] * count
    delta = relativedelta.relativedelta(**{f"{recurring['interval']}s": amount})
    return int((dt.datetime.fromtimestamp(anchor, dt.UTC) + delta).timestamp())


def current(anchor: int, recurring: dict[str, Any], now: int) -> tuple[int, int]:
    """Return the start and end of the period that contains `now`, which may be before the anchor."""
    count = 0
    while step(anchor, recurring, count + 1) <= now:
        count += 1
    while step(anchor, recurring, count) > now:
        count -= 1
    return step(anchor, recurring, count), step(anchor, recurring, count + 1)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Say whether two prices have the same interval."""
    return all(one[name] == other[name] for name in ("interval", "interval_count"))
