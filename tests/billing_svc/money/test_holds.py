"""A hold carries its terms: what was promised is what is billed, whatever has changed when it is settled."""

import uuid
from datetime import timedelta
from decimal import Decimal

import pytest

from billing.v1 import admin_pb2, decision_pb2, quota_pb2, usage_pb2
from billing_svc.subscriptions.catalog_moves import move_subscriptions
from tests.billing_svc.money.ledger import ORIGIN, Ledger
from tests.billing_svc.service import CATALOGS

CREDIT = Decimal("0.008")
OVERAGE = decision_pb2.DECISION_REASON_OVERAGE
PLAIN = decision_pb2.DECISION_REASON_UNSPECIFIED


@pytest.fixture
def catalog_name() -> str:
    return "kalshibook"


async def hold(ledger: Ledger, quantity: int) -> quota_pb2.CheckQuotaResponse:
    request = quota_pb2.CheckQuotaRequest(
        account_id=ledger.account_id, meter="credits", quantity=quantity, reserve=True, request_id=uuid.uuid4().hex
    )
    request.reservation_ttl.FromTimedelta(timedelta(hours=24))
    answer = await ledger.world.billing.quota.CheckQuota(request)
    assert answer.decision == decision_pb2.DECISION_ALLOWED
    return answer


async def settle(
    ledger: Ledger, held: quota_pb2.CheckQuotaResponse, quantity: int, *, reject: bool = True
) -> usage_pb2.RecordUsageResponse:
    event = usage_pb2.RecordUsageRequest(
        account_id=ledger.account_id,
        event_id=uuid.uuid4().hex,
        meter="credits",
        quantity=quantity,
        reservation_id=held.reservation_id,
        if_exceeded=usage_pb2.IF_EXCEEDED_REJECT if reject else usage_pb2.IF_EXCEEDED_RECORD,
    )
    return await ledger.world.billing.usage.RecordUsage(event)


async def override(ledger: Ledger, included: int, lasts: timedelta) -> None:
    request = admin_pb2.SetOverrideRequest(
        account_id=ledger.account_id, meter="credits", included=included, note="a test", request_id=uuid.uuid4().hex
    )
    request.expires_at.FromDatetime(ledger.world.billing.clock.now() + lasts)
    await ledger.world.billing.admin.SetOverride(request)


async def test_switching_pay_as_you_go_off_between_hold_and_settlement_frees_nothing(ledger: Ledger) -> None:
    await ledger.buy(plan="project")
    await ledger.switch(on=True)
    await ledger.use("credits", 4_000)
    held = await hold(ledger, 100_000)
    assert (held.reason, held.projected_overage_cost.amount) == (OVERAGE, "800.00")
    await ledger.switch(on=False)
    settled = await settle(ledger, held, 100_000)
    assert (settled.billable, settled.reason, settled.remaining) == (100_000, OVERAGE, 0)
    # Of what is used beyond a hold, the terms in force decide.
    assert (await ledger.use("credits", 10)).billable == 0
    await ledger.switch(on=True)
    await ledger.over_the_period_end()
    assert await ledger.totals() == [Decimal(30), Decimal(830)]
    assert await ledger.differences() == []


async def test_what_fitted_under_an_override_is_not_charged_when_that_is_over(ledger: Ledger) -> None:
    await ledger.buy(plan="project")
    await ledger.switch(on=True)
    await override(ledger, 30_000, timedelta(hours=1))
    held = await hold(ledger, 20_000)
    assert held.reason == PLAIN
    await ledger.advance(hours=2)
    settled = await settle(ledger, held, 20_100)
    # The 100 beyond the hold are charged, as the terms in force have it.
    assert (settled.billable, settled.reason, settled.included) == (100, OVERAGE, 4_000)
    await ledger.over_the_period_end()
    assert await ledger.totals() == [Decimal(30), 30 + 100 * CREDIT]
    assert await ledger.differences() == []


async def test_a_move_to_a_version_with_less_included_does_not_charge_what_was_held_before(ledger: Ledger) -> None:
    await ledger.buy(plan="project")
    await ledger.switch(on=True)
    held = await hold(ledger, 4_000)
    text = (CATALOGS / "kalshibook.yaml").read_text()
    await ledger.sell(text.replace("included: 4000", "included: 1000"))
    billing = ledger.world.billing
    async for move in move_subscriptions.preview(billing.transactions, billing.clock.now()):
        assert await move_subscriptions.apply(billing.transactions, move, ORIGIN, billing.clock.now())
    assert (await ledger.check("credits")).included == 1_000
    assert (await settle(ledger, held, 4_000)).billable == 0
    assert (await ledger.use("credits", 10)).billable == 10
    await ledger.over_the_period_end()
    assert await ledger.charged() == 60 + 10 * CREDIT
    assert await ledger.differences() == []


@pytest.mark.parametrize("reject", [False, True])
async def test_after_the_plan_has_ended_the_held_part_has_its_price_and_the_rest_its_own(
    ledger: Ledger, *, reject: bool
) -> None:
    await ledger.buy(plan="project")
    await ledger.switch(on=True)
    await ledger.use("credits", 3_900)
    held = await hold(ledger, 1_100)
    assert held.projected_overage_cost.amount == "8.00"
    await ledger.cancel()
    assert (await ledger.check("credits")).plan == "free"
    settled = await settle(ledger, held, 1_100 if reject else 1_300, reject=reject)
    assert (settled.decision, settled.billable) == (decision_pb2.DECISION_ALLOWED, 1_000)
    assert settled.plan == ("project" if reject else "free")
    await ledger.advance(days=3)
    assert await ledger.charged_by_meters() == 1_000 * CREDIT
    assert await ledger.differences() == []


async def test_beyond_the_hold_the_terms_in_force_may_deny(ledger: Ledger) -> None:
    await ledger.buy(plan="project")
    await ledger.switch(on=True)
    await ledger.use("credits", 4_000)
    held = await hold(ledger, 100)
    await ledger.switch(on=False)
    denied = await settle(ledger, held, 101)
    assert (denied.decision, denied.reserved) == (decision_pb2.DECISION_DENIED, 100)
    assert (await settle(ledger, held, 101, reject=False)).billable == 100


async def test_more_than_stripe_takes_is_a_finding_and_is_not_sent(ledger: Ledger) -> None:
    await ledger.buy(plan="project")
    await ledger.switch(on=True)
    await ledger.use("credits", 4_000)
    held = await hold(ledger, 125_000_000)
    assert held.projected_overage_cost.amount == "1000000.00"
    await ledger.cancel()
    assert (await settle(ledger, held, 125_000_000)).billable == 125_000_000
    await ledger.advance(days=3)
    assert await ledger.charged_by_meters() == 0
    assert not await ledger.world.sandbox.requests("POST", "/v1/invoiceitems")
    assert [kind for kind, _ in await ledger.differences()] == ["usage: failed"]


class TestBetweenPlans:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_a_settlement_after_a_change_of_plan_has_the_price_of_its_hold(self, ledger: Ledger) -> None:
        """Also when the plan of now has charged and reported in the same period before."""
        await ledger.buy(plan="standard")
        await ledger.use("llm_tokens", 1_000_000)
        request = quota_pb2.CheckQuotaRequest(
            account_id=ledger.account_id, meter="llm_tokens", quantity=100_000, reserve=True, request_id="job"
        )
        held = await ledger.world.billing.quota.CheckQuota(request)
        assert held.projected_overage_cost.amount == "1.00"
        await ledger.change(plan="enterprise")
        await ledger.world.deliver_new()
        assert (await ledger.use("llm_tokens", 9_500_000)).billable == 500_000
        await ledger.report()
        event = usage_pb2.RecordUsageRequest(
            account_id=ledger.account_id,
            event_id="run",
            meter="llm_tokens",
            quantity=300_000,
            reservation_id=held.reservation_id,
        )
        settled = await ledger.world.billing.usage.RecordUsage(event)
        assert (settled.billable, settled.plan) == (300_000, "enterprise")
        await ledger.over_the_period_end()
        # 100,000 as told, and 700,000 at the price of the plan in force.
        assert await ledger.charged_by_meters() == Decimal("1.00") + Decimal("3.50")
        assert await ledger.differences() == []
