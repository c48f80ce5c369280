"""Months of different lengths, trials, years and seats: which time is charged with which amount."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing.v1 import usage_pb2
from tests.billing_svc.money import ledger as ledgers
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.subscriptions.dealing import NOW

CATALOG = """
catalog: spans
currency: usd
default_plan: free
meters:
  runs: {unit: run, kind: consumable}
plans:
  free:
    name: Free
    limits: {runs: {included: 5, beyond: deny}}
  tried:
    name: Tried
    trial_days: 10
    prices:
      monthly: {amount: "12.00", interval: month}
    limits: {runs: {included: 100, beyond: charge, unit_price: "0.25"}}
  year:
    name: A year
    prices:
      yearly: {amount: "120.00", interval: year}
    limits: {runs: {included: 100, beyond: deny}}
"""


async def test_overage_is_on_its_own_month_s_invoice_though_short_months_lack_the_anchor(ledger: Ledger) -> None:
    """Bought on the 31st of January: each month's overage is on the invoice at the end of that month."""
    now = ledger.world.billing.clock.now()
    await ledger.until(datetime(now.year + 1, 1, 31, 17, 30, tzinfo=UTC))
    await ledger.buy()
    ends = []
    for beyond in (1, 2, 3):
        told = await ledger.told()
        assert told.period_end == told.quota_period_end
        ends.append(told.period_end.ToDatetime(tzinfo=UTC))
        await ledger.until_period_end(hours=-1)
        assert (await ledger.use("runs", 200 + beyond)).billable == beyond
        await ledger.over_the_period_end()
    assert [(at.month, at.day) for at in ends] == [(2, 29 if ends[0].year % 4 == 0 else 28), (3, 31), (4, 30)]
    assert await ledger.totals() == [Decimal(20), Decimal("20.50"), Decimal(21), Decimal("21.50")]
    assert await ledger.differences() == []


async def test_a_trial_is_free_and_the_month_after_it_is_charged(ledger: Ledger) -> None:
    await ledger.sell(CATALOG)
    await ledger.buy(plan="tried")
    told = await ledger.told()
    assert (told.plan, told.trial_end) == ("tried", told.period_end)
    await ledger.use("runs", 104)
    await ledger.over_the_period_end()
    assert await ledger.charged() == 12
    await ledger.use("runs", 103)
    await ledger.over_the_period_end()
    assert await ledger.charged() == 12 + 12 + 3 * Decimal("0.25")
    assert await ledger.differences() == []


async def test_a_trial_that_is_cancelled_costs_nothing(ledger: Ledger) -> None:
    await ledger.sell(CATALOG)
    await ledger.buy(plan="tried")
    await ledger.use("runs", 104)
    await ledger.advance(days=3)
    await ledger.cancel(NOW)
    await ledger.advance(days=40)
    assert await ledger.charged() == 0
    assert await ledger.differences() == []


async def test_what_was_not_reported_when_a_trial_ended_at_stripe_is_free_too(ledger: Ledger) -> None:
    await ledger.sell(CATALOG)
    subscription_id = await ledger.buy(plan="tried")
    await ledger.use("runs", 104)
    await ledger.world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}", prorate="false")
    await ledger.world.deliver_new()
    await ledger.advance(hours=4)
    await ledger.advance(days=2)
    assert await ledger.charged() == 0
    assert await ledger.differences() == []


async def test_a_year_is_charged_once_and_its_quota_begins_anew_each_month(ledger: Ledger) -> None:
    await ledger.sell(CATALOG)
    await ledger.buy(plan="year")
    first = await ledger.told()
    await ledger.use("runs", 100)
    await ledger.advance(days=32)
    assert (await ledger.check("runs")).used == 0
    told = await ledger.told()
    assert told.quota_period_end.seconds - told.quota_period_start.seconds < 32 * 86_400
    assert (told.period_start, told.period_end) == (first.period_start, first.period_end)
    assert await ledger.charged() == 120
    await ledger.over_the_period_end()
    assert await ledger.totals() == [Decimal(120), Decimal(120)]
    assert await ledger.differences() == []


class TestOrgs:
    """Plans sold by the seat."""

    @pytest.fixture
    def catalog_name(self) -> str:
        return "orgs"

    async def test_seats_up_and_down_are_prorated(self, ledger: Ledger) -> None:
        await ledger.buy(plan="business", quantity=4)
        told = await ledger.told()
        begins, ends = told.period_start.seconds, told.period_end.seconds
        owed, seats = Decimal("25.00") * 4, 4
        for quantity, after_days in ((10, 6), (3, 5), (7, 4)):
            await ledger.advance(days=after_days)
            changed = await ledger.change(quantity=quantity)
            assert changed.subscription.quantity == quantity
            assert (await ledger.check("members")).included == quantity
            at = changed.proration_at.seconds
            owed += ledgers.prorated(f"{25 * quantity}", begins, at, ends)
            owed -= ledgers.prorated(f"{25 * seats}", begins, at, ends)
            seats = quantity
        await ledger.over_the_period_end()
        assert await ledger.charged() == owed + 7 * Decimal("25.00")
        assert await ledger.as_told() == await ledger.as_at_stripe()
        assert await ledger.differences() == []

    async def test_a_year_s_seats_after_a_trial(self, ledger: Ledger) -> None:
        await ledger.buy(plan="team", price="yearly", quantity=3)
        assert await ledger.charged() == 0
        await ledger.over_the_period_end()
        assert await ledger.charged() == 3 * Decimal("150.00")
        told = await ledger.told()
        begins, ends = told.period_start.seconds, told.period_end.seconds
        await ledger.advance(days=100)
        changed = await ledger.change(quantity=5)
        at = changed.proration_at.seconds
        more = ledgers.prorated("750", begins, at, ends) - ledgers.prorated("450", begins, at, ends)
        await ledger.work()
        assert await ledger.charged() == 450 + more
        assert await ledger.differences() == []


class TestAgentplatform:
    """A gauge that is charged by its peak, month after month."""

    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_the_peak_of_each_month_is_charged(self, ledger: Ledger) -> None:
        await ledger.buy(plan="standard")
        numbers = iter(range(100))

        async def stored(level: int) -> None:
            request = usage_pb2.RecordUsageRequest(
                account_id="org_1", event_id=f"level_{next(numbers)}", meter="storage_gb", level=level
            )
            await ledger.world.billing.usage.RecordUsage(request)

        for level in (90, 108, 95, 104):
            await stored(level)
            await ledger.advance(days=1)
        await ledger.over_the_period_end()
        # The period begins with a level of 104, which falls in the middle of the month.
        await ledger.advance(days=9)
        await stored(60)
        await ledger.over_the_period_end()
        await ledger.advance(days=9)
        await stored(101)
        await ledger.cancel(NOW)
        await ledger.advance(days=3)
        gigabyte = Decimal("0.50")
        assert await ledger.totals() == [Decimal(99), 99 + 8 * gigabyte, 99 + 4 * gigabyte, 1 * gigabyte]
        assert await ledger.differences() == []

    async def test_cheap_units_are_rounded_once_on_each_invoice(self, ledger: Ledger) -> None:
        """A token is a thousandth of a cent: 1,499 tokens are 1.499 cents, sent in three reports."""
        await ledger.buy(plan="standard")
        await ledger.use("llm_tokens", 1_000_000)
        for units in (499, 501, 499):
            await ledger.use("llm_tokens", units)
            await ledger.advance(hours=1)
        await ledger.until_period_end(hours=-1)
        await ledger.world.advance(timedelta(minutes=30), ledger.work)
        await ledger.over_the_period_end()
        assert await ledger.totals() == [Decimal(99), Decimal("99.01")]
        assert await ledger.differences() == []
