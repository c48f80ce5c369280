"""Random moves of anchors and trials: quota periods do not overlap, and each unit is charged once."""

import itertools
import os
import random
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from billing.v1 import usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.money.moving import CATALOG, Support, begun, shown

# BILLING_MOVES=200 BILLING_MOVE_STEPS=40 runs for long; BILLING_MOVE_FIRST=17 begins with that seed.
FIRST = int(os.environ.get("BILLING_MOVE_FIRST", "0"))
MOVES = int(os.environ.get("BILLING_MOVES", "3"))
STEPS = int(os.environ.get("BILLING_MOVE_STEPS", "16"))
INCLUDED = 10


class Dashboard:
    """Random acts of support and of the account, and what the account owes, computed beside them."""

    def __init__(self, support: Support, seed: int) -> None:
        self.support = support
        self.ledger = support.ledger
        self.draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.trials: list[tuple[datetime, datetime]] = []
        # The beginning, and the moves after it.
        self.moves = [support.now]
        self.owed = 0
        self.story: list[str] = []

    async def live(self, steps: int) -> None:
        acts: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.use, 8),
            (self.use_late, 3),
            (self.move_trial, 3),
            (self.end_trial, 2),
            (self.reset_anchor, 2),
            (self.lose_meter_events, 1),
            (self.time_passes, 6),
        ]
        for _ in range(steps):
            ((act, _),) = self.draw.choices(acts, [weight for _, weight in acts])
            await act()
            if self.draw.random() < 0.5:
                await self.ledger.work()
            # Both clocks have whole seconds, and may differ by one.
            await self.ledger.world.advance(timedelta(minutes=2))

    def note(self, what: str) -> None:
        self.story.append(f"{self.support.now:%m-%d %H:%M:%S} {what}")

    async def use(self) -> None:
        await self._record(self.support.now)

    async def use_late(self) -> None:
        """Record usage from up to 20 minutes ago: also from before a move, but never in the minute around it."""
        at = self.support.now - timedelta(minutes=self.draw.randint(1, 20))
        if at > self.moves[0] and not any(abs(at - moved_at) < timedelta(seconds=45) for moved_at in self.moves):
            await self._record(at)

    async def _record(self, at: datetime) -> None:
        units = self.draw.choice((1, 4, 9, 12))
        request = usage_pb2.RecordUsageRequest(
            account_id="org_1", event_id=uuid.UUID(int=self.draw.getrandbits(128)).hex, meter="runs", quantity=units
        )
        request.occurred_at.FromDatetime(at)
        answer = await self.ledger.world.billing.usage.RecordUsage(request)
        assert answer.period_start.ToDatetime(UTC) <= at < answer.period_end.ToDatetime(UTC), self.story
        is_free = any(start <= at < end for start, end in self.trials)
        self.owed += 0 if is_free else answer.billable
        self.note(f"{units} at {at:%m-%d %H:%M:%S}: {answer.billable} beyond{', in a trial' if is_free else ''}")

    async def move_trial(self) -> None:
        end = self.support.now + timedelta(days=self.draw.choice((1, 6, 20, 50)))
        self.note(f"trial until {end:%m-%d %H:%M:%S}")
        self._cut_trial()
        self.trials.append((self.support.now, end))
        await self.support.trial_until(end)

    async def end_trial(self) -> None:
        self.note("trial ended")
        self._cut_trial()
        await self.support.end_trial()

    async def reset_anchor(self) -> None:
        if not self.trials or self.trials[-1][1] <= self.support.now:
            self.note("anchor reset")
            self.moves.append(self.support.now)
            await self.support.reset_anchor()

    def _cut_trial(self) -> None:
        now = self.support.now
        self.moves.append(now)
        if self.trials and self.trials[-1][1] > now:
            self.trials[-1] = self.trials[-1][0], now

    async def lose_meter_events(self) -> None:
        await self.ledger.world.sandbox.control("DELETE", "faults")
        if self.draw.random() < 0.5:
            self.note("meter events fail")
            await self.ledger.world.sandbox.fault("unavailable", path="/v1/billing/meter_events", method="POST")

    async def time_passes(self) -> None:
        by = self.draw.choice((timedelta(minutes=9), timedelta(hours=7), timedelta(days=4), timedelta(days=17)))
        self.note(f"{by} pass")
        await self.ledger.world.advance(by, self.ledger.work)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + MOVES))
async def test_each_unit_is_charged_once_whatever_is_moved(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("stripe._http_client.HTTPClient.INITIAL_DELAY", 0.001)
    await ledger.sell(CATALOG)
    life = Dashboard(await begun(ledger), seed)
    await life.live(STEPS)
    await ledger.world.sandbox.control("DELETE", "faults")
    for _ in range(6):
        await ledger.advance(hours=6)
    await ledger.advance(days=90)
    story = "\n".join(life.story)

    rows = sorted(
        await ledger.world.rows(tables.usage_counters, tables.usage_counters.c.meter == "runs"),
        key=lambda row: row.period_start,
    )
    for before, after in itertools.pairwise(rows):
        assert before.period_end <= after.period_start, story
    for row in rows:
        assert row.used - row.billable == min(row.used, INCLUDED), story
        assert await shown(ledger, row.period_start) == (row.period_start, row.period_end, row.used), story
    at, ends = rows[0].period_start, rows[-1].period_end
    while at < ends:  # each period begins where the one before it ended
        start, end, _ = await shown(ledger, at)
        assert start == at, story
        at = end
    assert await ledger.charged_by_meters() == life.owed, story
    assert await ledger.differences() == [], story
