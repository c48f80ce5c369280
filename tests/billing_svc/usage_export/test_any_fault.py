"""Random faults in any order: Stripe's sum equals the recorded units, each charged once, exact to the cent."""

import contextlib
import decimal
import random
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import grpc
import pytest
import sqlalchemy as sa

from billing.v1 import usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.stripe import client
from billing_svc.usage_export import accrual, meter_errors, sending
from billing_svc.usage_export import retry_failed as retrying
from tests.billing_svc.service import Billing
from tests.billing_svc.usage_export import counterpart

pytestmark = pytest.mark.long

PRICES = {
    "agentplatform_standard_api_calls": Decimal("0.1"),
    "agentplatform_standard_llm_tokens": Decimal("0.001"),
}
INCLUDED = {"api_calls": 100_000, "llm_tokens": 1_000_000}


@pytest.fixture
def catalog_name() -> str:
    return "agentplatform"


@pytest.fixture
def service_clock() -> clock.Clock:
    # A whole second, so that periods begin at Stripe at the same instant as here.
    return Stopped(datetime.now().astimezone().replace(microsecond=0))


class Stopped(clock.Clock):
    """A clock that moves only when the test moves it."""

    def __init__(self, at: datetime) -> None:
        super().__init__()
        self._at = at

    def now(self) -> datetime:
        return self._at

    def advance(self, by: timedelta) -> None:
        self._at += by


class Story:
    """Random operations of an account over some weeks, from a seed."""

    def __init__(self, billing: Billing, seed: int) -> None:
        self.billing = billing
        self.random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.faults = 0.0
        self.away_until: datetime | None = None
        self.stripe = counterpart.Counterpart(billing.clock, PRICES, billing.clock.now(), self.fate)
        self.workers = [self.worker(), self.worker()]
        self.recorded = 0

    def worker(self) -> tuple[accrual.Accrual, sending.Sender]:
        now, database, catalogs = self.billing.clock, self.billing.transactions, versions.CatalogCache()
        stripe = cast("client.Stripe", self.stripe)
        return (
            accrual.Accrual(database, catalogs, now, timedelta(minutes=1), timedelta(minutes=5)),
            sending.Sender(database, catalogs, stripe, now),
        )

    def fate(self, _call: str) -> str:
        if self.away_until is not None and self.billing.clock.now() < self.away_until:
            return counterpart.NOT_DONE
        if self.random.random() < self.faults:
            return self.random.choice((counterpart.NOT_DONE, counterpart.UNHEARD))
        return counterpart.FINE

    async def begin(self) -> None:
        now = self.billing.clock.now()
        async with self.billing.engine.begin() as conn:
            await conn.execute(
                sa.insert(tables.accounts).values(
                    account_id="org_1", created_at=now, customer_id=self.stripe.customer_id
                )
            )
            for name in PRICES:
                await conn.execute(
                    sa.insert(tables.stripe_prices).values(
                        price_id=f"price_{name}", lookup_key=name, product_id="prod", catalog_version=1,
                        plan="standard", price="", meter=name.removeprefix("agentplatform_standard_"),
                        pay_as_you_go=False, stripe_event_name=name, is_current=True, created_at=now,
                    )
                )  # fmt: skip
        self.stripe.catch_up()
        await self.hear()

    async def hear(self) -> None:
        """Apply the subscription's present state to the service."""
        self.stripe.catch_up()
        cycle, now = self.stripe.cycles[-1], self.billing.clock.now()
        values: dict[str, Any] = {
            "customer_id": self.stripe.customer_id,
            "status": "active" if self.stripe.ended_at is None else "canceled",
            "plan": "standard",
            "price": "monthly",
            "catalog_version": 1,
            "is_plan": True,
            "quantity": 1,
            "anchor": self.stripe.anchor,
            "billing_period_start": cycle.start,
            "billing_period_end": cycle.end,
            "cancel_at_period_end": False,
            "ended_at": self.stripe.ended_at,
            "effective_from": self.stripe.anchor,
            "effective_until": self.stripe.ended_at,
            "updated_at": now,
        }
        async with self.billing.engine.begin() as conn:
            rows = sa.delete(tables.subscriptions).where(tables.subscriptions.c.account_id == "org_1")
            await conn.execute(rows)
            row = {"account_id": "org_1", "subscription_id": self.stripe.subscription_id, **values}
            await conn.execute(sa.insert(tables.subscriptions).values(row))

    async def record(self, meter: str, units: int) -> None:
        self.recorded += 1
        await self.billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(
                account_id="org_1", event_id=f"event_{self.recorded}", meter=meter, quantity=units
            )
        )

    async def correct(self) -> None:
        async with self.billing.engine.connect() as conn:
            events = tables.usage_events
            query = sa.select(events.c.event_id, events.c.units).where(events.c.units > 1)
            rows = (await conn.execute(query.order_by(events.c.event_id))).all()
        if rows:
            event_id, units = self.random.choice(rows)
            request = usage_pb2.CorrectUsageRequest(
                account_id="org_1", event_id=event_id, correction_id=f"void_{self.random.random()}",
                quantity=self.random.randint(1, units // 2),
            )  # fmt: skip
            # Several corrections may exceed the event's units; the service refuses that.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.billing.usage.CorrectUsage(request)

    async def work(self) -> None:
        sealer, sender = self.random.choice(self.workers)
        await sealer.seal_due()
        await sender.send_due()

    async def report_error(self) -> None:
        """Let Stripe lose an event that it accepted, and send its error report."""
        if not self.stripe.events or self.random.random() < 0.5:
            return
        lost = self.random.choice(self.stripe.events)
        if any(cycle.final and cycle.start <= lost.timestamp < cycle.end for cycle in self.stripe.cycles):
            return
        self.stripe.events.remove(lost)
        sample = meter_errors.Sample("meter_event_invalid_value", "lost", f"{lost.identifier}:1")
        report = meter_errors.MeterErrorReport("mtr", "lost", 1, (sample,))
        now = self.billing.clock.now()
        await self.billing.transactions.run(
            lambda conn: meter_errors.apply(conn, report, audit_store.Origin("stripe:evt"), now)
        )

    async def retry_failed(self) -> None:
        now = self.billing.clock.now()
        await self.billing.transactions.run(
            lambda conn: retrying.retry_all(conn, "org_1", audit_store.Origin("operator:test"), now)
        )

    async def live(self, steps: int) -> None:
        draw = self.random
        for _ in range(steps):
            self.billing.clock.advance(timedelta(seconds=draw.choice((1, 20, 300, 3000, 40_000))))
            happens = draw.choice(
                (
                    *(self.call, self.call, self.spend, self.spend, self.correct),
                    *(self.change_faults, self.go_away, self.report_error, self.hear, self.retry_failed),
                    self.near_the_end,
                )
            )
            await happens()
            if draw.random() < 0.8:
                await self.work()

    async def call(self) -> None:
        await self.record("api_calls", self.random.randint(1, 40_000))

    async def spend(self) -> None:
        await self.record("llm_tokens", self.random.randint(1, 400_000))

    async def change_faults(self) -> None:
        self.faults = self.random.choice((0.0, 0.0, 0.2, 0.9))

    async def near_the_end(self) -> None:
        """Advance to a few minutes before a period's end, or before its invoice is final."""
        self.stripe.catch_up()
        ends = self.stripe.cycles[-1].end
        if ends - self.billing.clock.now() > timedelta(days=3) and self.random.random() < 0.5:
            minutes = self.random.choice((-50, -10, 1, 10, 600))
            self.billing.clock.advance(ends - self.billing.clock.now() - timedelta(minutes=minutes))

    async def go_away(self) -> None:
        if self.random.random() < 0.3:
            self.away_until = self.billing.clock.now() + timedelta(hours=self.random.choice((1, 30, 70)))

    async def settle(self) -> None:
        """Without further faults, advance two days and a period, so that all waiting work is done."""
        self.faults, self.away_until = 0.0, None
        for _ in range(30):
            self.billing.clock.advance(timedelta(hours=2))
            await self.hear()
            await self.retry_failed()
            await self.work()
        self.billing.clock.advance(timedelta(days=30))
        for _ in range(30):
            self.billing.clock.advance(timedelta(minutes=20))
            await self.hear()
            await self.retry_failed()
            await self.work()


@pytest.mark.parametrize("seed", range(6))
async def test_the_sum_at_stripe_is_what_was_recorded(billing: Billing, seed: int) -> None:
    story = Story(billing, seed)
    await story.begin()
    await story.record("api_calls", INCLUDED["api_calls"])
    await story.record("llm_tokens", INCLUDED["llm_tokens"])
    await story.live(100)
    if seed % 3 == 0:
        story.stripe.catch_up()
        story.stripe.ended_at = billing.clock.now()
        await story.hear()
    await story.settle()
    await assert_charged_exactly(story)


async def assert_charged_exactly(story: Story) -> None:
    async with story.billing.engine.connect() as conn:
        counters = (await conn.execute(sa.select(tables.usage_counters))).all()
        reports = (await conn.execute(sa.select(tables.usage_reports))).all()
    assert {one.state for one in reports} <= {"sent", "invoiced", "void"}, [
        (one.state, one.error) for one in reports if one.state not in {"sent", "invoiced", "void"}
    ]
    assert story.stripe.events, "the story must be about something"
    for counter in counters:
        name = f"agentplatform_standard_{counter.meter}"
        own = [one for one in reports if (one.meter, one.period_start) == (counter.meter, counter.period_start)]
        assert counter.sealed == counter.billable == sum(one.to_units - one.from_units for one in own)
        bounds = [one.from_units for one in sorted(own, key=lambda one: one.slice)]
        assert bounds == [0, *(one.to_units for one in sorted(own, key=lambda one: one.slice))][: len(own)]
        by_meter = sum(
            event.units
            for event in story.stripe.events
            if event.name == name and counter.period_start <= event.timestamp < counter.period_end
        )
        late = sum(one.to_units - one.from_units for one in own if one.state == "invoiced")
        assert by_meter + late == counter.billable
        # The invoice's line for the meter, rounded, and the items add up to the price of all units.
        price = PRICES[name]
        line = int((price * by_meter).to_integral_value(decimal.ROUND_HALF_UP))
        items = sum(one.amount for one in own if one.state == "invoiced")
        assert line + items == int((price * counter.billable).to_integral_value(decimal.ROUND_HALF_UP))
    # The final invoices agree: no event reached a meter after its invoice was final.
    for name, price in PRICES.items():
        settled = [
            one
            for one in counters
            if name.endswith(one.meter)
            and (one.period_end <= story.stripe.cycles[-1].start or story.stripe.ended_at is not None)
        ]
        owed = sum(int((price * one.billable).to_integral_value(decimal.ROUND_HALF_UP)) for one in settled)
        items = sum(one.amount or 0 for one in reports if one.stripe_event_name == name)
        assert sum(story.stripe.charged_by_meters(name)) + items == owed
    made = sorted(one["amount"] for one in story.stripe.items.values())
    assert made == sorted(one.amount for one in reports if one.amount)
