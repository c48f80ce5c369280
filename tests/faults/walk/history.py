"""What Stripe's events say about the past: trials, and the instants at which a quota period may begin."""

import calendar
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.faults.walk.expected import GIVING
from tests.faults.walk.mail import LATE_MAX
from tests.faults.walk.walker import Data, Walker

MONTHS = 8
# Both clocks have whole seconds.
SLACK = timedelta(seconds=2)


@dataclass
class Bounds:
    """The instants that Stripe gave a reason for, and the spans in which the service may have noticed a change."""

    instants: set[datetime] = field(default_factory=set)
    spans: list[tuple[datetime, datetime]] = field(default_factory=list)
    # From a suspension to its end. The interrupted period goes on, beside that of the default plan (ADR 0019).
    interruptions: list[tuple[datetime, datetime]] = field(default_factory=list)

    def allow_overlap(self, before: tuple[datetime, datetime], after: tuple[datetime, datetime]) -> bool:
        """Say whether a period that goes on after a suspension may overlap the default plan's period."""
        return after[0] < before[1] and any(
            start <= before[1] and after[0] <= end + LATE_MAX for start, end in self.interruptions
        )

    def explain(self, at: datetime) -> bool:
        """Say whether a period may begin at an instant: there, or with a calendar month."""
        if (at.day, at.hour, at.minute, at.second) == (1, 0, 0, 0):
            return True
        is_known = any(abs(at - one) <= SLACK for one in self.instants)
        return is_known or any(start <= at <= end for start, end in self.spans)


async def bounds(walker: Walker) -> Bounds:
    """Return when periods may begin, of all subscriptions of the account."""
    found, status, left = Bounds(), dict[str, str](), dict[str, datetime]()
    for created, one in await _states(walker):
        found.instants |= set(_instants(one))
        before = status.get(one["id"])
        if before is not None and (before in GIVING) != (one["status"] in GIVING):
            # A suspension, and its end, begin when the service notices.
            found.spans.append((created - SLACK, created + LATE_MAX + timedelta(hours=1)))
            if one["status"] not in GIVING:
                left[one["id"]] = created
            elif one["id"] in left:
                found.interruptions.append((left[one["id"]], created))
        status[one["id"]] = one["status"]
    return found


async def trials(walker: Walker) -> list[tuple[datetime, datetime]]:
    """Return the trials of the account's subscriptions."""
    found, began = list[tuple[datetime, datetime]](), dict[str, datetime]()
    for created, one in await _states(walker):
        if one["status"] == "trialing":
            began.setdefault(one["id"], created)
        elif one["id"] in began:
            found.append((began.pop(one["id"]), created))
    return found + [(at, walker.now) for at in began.values()]


async def _states(walker: Walker) -> list[tuple[datetime, Data]]:
    events = [one for one in await walker.all("/v1/events") if one["type"].startswith("customer.subscription.")]
    return [(_instant(one["created"]), one["data"]["object"]) for one in events]


def _instants(one: Data) -> Iterable[datetime]:
    named = ("ended_at", "cancel_at", "canceled_at", "trial_end")
    yield from (_instant(one[name]) for name in named if one[name])
    counted = {one["start_date"], one["billing_cycle_anchor"]}
    for item in one["items"]["data"]:
        yield _instant(item["current_period_end"])
        counted.add(item["current_period_start"])
    for since in counted:
        yield from (_later(_instant(since), months) for months in range(MONTHS))


def _later(since: datetime, months: int) -> datetime:
    year, month = divmod(since.month - 1 + months, 12)
    last = calendar.monthrange(since.year + year, month + 1)[1]
    return since.replace(year=since.year + year, month=month + 1, day=min(since.day, last))


def _instant(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)
