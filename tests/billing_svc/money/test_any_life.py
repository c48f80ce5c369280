"""Random operations and faults on an account: each unit is charged once, and none is lost."""

import os
import random
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal

import grpc
import pytest

from billing.v1 import subscription_pb2, usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW

pytestmark = pytest.mark.long

# BILLING_LIVES=500 BILLING_LIFE_STEPS=60 runs for an hour; BILLING_LIFE_FIRST=17 begins with that seed.
FIRST = int(os.environ.get("BILLING_LIFE_FIRST", "0"))
LIVES = int(os.environ.get("BILLING_LIVES", "2"))
STEPS = int(os.environ.get("BILLING_LIFE_STEPS", "30"))

# Every price is in whole cents, so that no amount is rounded.
CATALOG = """
catalog: lives
currency: usd
default_plan: free
free_period: calendar_month
meters:
  runs: {unit: run, kind: consumable}
plans:
  free:
    name: Free
    limits: {runs: {included: 5, beyond: deny}}
    pay_as_you_go:
      name: Pay as you go
      limits: {runs: {included: 5, beyond: charge, unit_price: "0.07"}}
  small:
    name: Small
    prices:
      monthly: {amount: "10.00", interval: month}
    limits: {runs: {included: 20, beyond: charge, unit_price: "0.05"}}
  big:
    name: Big
    prices:
      monthly: {amount: "40.00", interval: month}
    limits: {runs: {included: 50, beyond: charge, unit_price: "0.03"}}
  team:
    name: Team
    prices:
      monthly: {amount: "4.00", interval: month, per_seat: true}
    limits: {runs: {included: 10, beyond: deny, per_seat: true}}
    pay_as_you_go:
      name: Team, pay as you go
      limits: {runs: {included: 10, beyond: charge, unit_price: "0.02"}}
"""
CENTS = {"free": 7, "small": 5, "big": 3, "team": 2}
PLANS = ("small", "big", "team")

FAULTS = (
    {"kind": "rate_limited"},
    {"kind": "conflict"},
    {"kind": "unavailable"},
    {"kind": "broken"},
    {"kind": "broken", "does_it": True},
    {"kind": "cut"},
    {"kind": "lost_answer", "seconds": 0.0},
)
# The statuses for a call that may be repeated, or that asks for something impossible. Never INTERNAL or UNKNOWN.
REFUSALS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.INVALID_ARGUMENT,
}


class Life:
    """The random operations of a seed, and the expected amount, which is computed beside them."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.events: dict[str, int] = {}
        self.page = ""
        self.story: list[str] = []
        # Half of the seeds correct usage; the others have plans with different prices, to show which plan charged.
        self.corrects = seed % 2 == 0

    async def live(self, steps: int) -> None:
        happenings: list[tuple[Callable[[], Awaitable[object]], int]] = [
            (self.record, 8),
            (self.correct, 3 if self.corrects else 0),
            (self.buy, 3),
            (self.pay, 2),
            (self.change, 3),
            (self.cancel, 2),
            (self.resume, 1),
            (self.switch, 2),
            (self.card, 1),
            (self.trouble, 2),
            (self.time_passes, 6),
        ]
        weights = [weight for _, weight in happenings]
        for _ in range(steps):
            ((happens, _),) = self.draw.choices(happenings, weights)
            self.note(happens.__name__)
            await self.tried(happens)
            if self.draw.random() < 0.6:
                await self.work()

    def note(self, what: str) -> None:
        self.story.append(f"{self.ledger.world.billing.clock.now():%m-%d %H:%M:%S} {what}")

    async def tried(self, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise
            self.note(f"  {error.code().name} {error.details()}")

    async def work(self) -> None:
        await self.ledger.work()

    async def record(self) -> None:
        event_id = uuid.UUID(int=self.draw.getrandbits(128)).hex
        units = self.draw.choice((1, 3, 10, 40))
        answer = await self.ledger.world.billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter="runs", quantity=units)
        )
        self.events[event_id] = units
        self.note(f"  {units}, of which {answer.billable} beyond on {answer.plan}")

    async def correct(self) -> None:
        if not self.events:
            return
        event_id = self.draw.choice(list(self.events))
        quantity = self.draw.randint(1, self.events[event_id])
        await self.ledger.world.billing.usage.CorrectUsage(
            usage_pb2.CorrectUsageRequest(
                account_id="org_1",
                event_id=event_id,
                correction_id=uuid.UUID(int=self.draw.getrandbits(128)).hex,
                quantity=quantity,
            )
        )

    async def buy(self) -> None:
        plan = self.draw.choice(PLANS)
        quantity = self.draw.randint(1, 3) if plan == "team" else 1
        self.page = (await self.ledger.world.checkout(plan=plan, quantity=quantity)).url
        await self.pay()

    async def pay(self) -> None:
        """Press the checkout page's button, also if the page was paid or is over."""
        if self.page:
            await self.ledger.world.sandbox.http.post(f"{self.page}/pay", headers={"Accept": "application/json"})

    async def change(self) -> None:
        plan = self.draw.choice(PLANS)
        seats = {"quantity": self.draw.randint(1, 3)} if plan == "team" else {}
        await self.ledger.change(self.draw.choice((NOW, NOW, AT_PERIOD_END)), plan=plan, **seats)

    async def cancel(self) -> None:
        await self.ledger.cancel(self.draw.choice((NOW, AT_PERIOD_END)))

    async def resume(self) -> None:
        await self.ledger.resume()

    async def switch(self) -> None:
        await self.ledger.switch(on=self.draw.random() < 0.6)

    async def card(self) -> None:
        if await self.ledger.world.sandbox.all("/v1/customers"):
            await self.ledger.give_card(self.draw.choice(("works", "works", "declines")))

    async def trouble(self) -> None:
        sandbox = self.ledger.world.sandbox
        await sandbox.control("DELETE", "faults")
        if self.draw.random() < 0.5:
            kind = self.draw.choice(FAULTS)
            self.note(f"  {kind}")
            await sandbox.fault(
                **kind,
                path="/v1/*",
                method="POST",
                probability=self.draw.choice((0.2, 0.6)),
                seed=self.draw.randrange(2**31),
            )

    async def time_passes(self) -> None:
        by = self.draw.choice(
            (timedelta(seconds=40), timedelta(minutes=20), timedelta(hours=7), timedelta(days=4), timedelta(days=17))
        )
        self.note(f"  {by}")
        await self.ledger.world.advance(by, self.work, deliver=False)

    async def come_to_rest(self) -> None:
        """Advance two periods without faults and with a card that works."""
        await self.ledger.world.sandbox.control("DELETE", "faults")
        await self.ledger.work()
        if await self.ledger.world.sandbox.all("/v1/customers"):
            await self.ledger.give_card("works")
        for _ in range(6):
            await self.ledger.advance(hours=6)
        await self.ledger.advance(days=64)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + LIVES))
async def test_each_unit_that_was_billable_is_charged_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("stripe._http_client.HTTPClient.INITIAL_DELAY", 0.001)
    catalog = CATALOG
    if seed % 2 == 0:
        # A correction may lower the bill of either plan, so all plans have the same price.
        for cents in set(CENTS.values()):
            catalog = catalog.replace(f'"0.0{cents}"', '"0.05"')
    await ledger.sell(catalog)
    life = Life(ledger, seed)
    await life.live(STEPS)
    await life.come_to_rest()
    story = "\n".join(life.story)

    counters = await ledger.world.rows(tables.usage_counters)
    events = await ledger.world.rows(tables.usage_events)
    assert sum(row.billable for row in counters) == sum(row.billable for row in events), story
    if life.corrects:
        owed = 5 * sum(row.billable for row in counters)
    else:
        owed = sum(CENTS[row.plan] * row.billable for row in events)
    failed = [row.error for row in await ledger.world.rows(tables.usage_reports) if row.state == "failed"]
    assert not failed, story
    assert await ledger.charged_by_meters() == Decimal(owed) / 100, story
    assert await ledger.differences() == [], story
    assert await ledger.as_told() == await ledger.as_at_stripe(), story
    assert {state for state, _ in (await ledger.world.inbox_states()).values()} <= {"applied", "ignored"}
    told = await ledger.told()
    assert (told.plan == "free") == (
        told.status
        in {
            subscription_pb2.STATUS_NONE,
            subscription_pb2.STATUS_CANCELED,
            subscription_pb2.STATUS_UNPAID,
            subscription_pb2.STATUS_INCOMPLETE_EXPIRED,
        }
    ), story
    assert not await ledger.world.rows(tables.subscription_duties), story
