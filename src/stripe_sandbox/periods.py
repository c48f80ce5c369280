"""Billing periods, counted from an anchor: January 31, February 28, March 31."""

import datetime as dt
from typing import Any

from dateutil import relativedelta


def step(anchor: int, recurring: dict[str, Any], count: int) -> int:
    """Give the unix time `count` intervals after the anchor; months keep the anchor's day where they have it."""
    amount = recurring["interval_count"] * count
    delta = relativedelta.relativedelta(**{f"{recurring['interval']}s": amount})
    return int((dt.datetime.fromtimestamp(anchor, dt.UTC) + delta).timestamp())


def current(anchor: int, recurring: dict[str, Any], now: int) -> tuple[int, int]:
    """Give the start and end of the period that `now` lies in, from the anchor on."""
    count = 0
    while step(anchor, recurring, count + 1) <= now:
        count += 1
    return step(anchor, recurring, count), step(anchor, recurring, count + 1)
