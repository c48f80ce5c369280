"""PreviewCost for an account's usage so far, on its own plan and on others."""

from datetime import UTC, timedelta

import pytest

from billing.v1 import admin_pb2, subscription_pb2
from tests import clocks
from tests.acceptance.accounts import START, Account


@pytest.fixture
def catalog_name() -> str:
    return "agentplatform"


async def preview(account: Account, **fields: object) -> subscription_pb2.PreviewCostResponse:
    request = subscription_pb2.PreviewCostRequest(account_id=account.account_id, **fields)  # type: ignore[arg-type]
    return await account.billing.subscriptions.PreviewCost(request)


def line(bill: subscription_pb2.PreviewCostResponse, meter: str) -> subscription_pb2.CostLine:
    return next(one for one in bill.lines if one.meter == meter)


async def use_section_3(account: Account) -> None:
    await account.record("e1", "llm_tokens", 1_500_000)
    await account.record("e2", "agent_executions", 5_500)
    await account.record("e3", "api_calls", 120_000)
    await account.record("e4", "storage_gb", level=105)
    await account.record("e5", "user_seats", level=27)


async def test_the_preview_of_usage_so_far_is_what_it_will_cost(account: Account) -> None:
    await account.subscribe("standard")
    await use_section_3(account)
    # The peak is what is charged.
    await account.record("e6", "user_seats", level=3)
    bill = await preview(account)
    assert (bill.total.amount, bill.plan, bill.price) == ("186.50", "standard", "monthly")
    assert bill.period_start.ToDatetime(UTC) == START
    assert bill.period_end.ToDatetime(UTC) == START.replace(month=6)
    assert (line(bill, "user_seats").quantity, line(bill, "user_seats").billable) == (27, 2)


async def test_usage_so_far_is_previewed_on_another_plan(account: Account) -> None:
    await account.subscribe("standard")
    await use_section_3(account)
    bill = await preview(account, plan="enterprise")
    assert (bill.total.amount, bill.plan) == ("499.00", "enterprise")
    bill = await preview(account, plan="free")
    assert bill.total.amount == "0.00"
    assert all(one.over_limit for one in bill.lines)


async def test_given_quantities_stand_in_for_those_of_the_account(account: Account) -> None:
    await account.subscribe("standard")
    await use_section_3(account)
    bill = await preview(account, usage=[subscription_pb2.MeterQuantity(meter="user_seats", quantity=30)])
    assert (line(bill, "user_seats").billable, bill.total.amount) == (5, "201.50")
    assert line(bill, "storage_gb").quantity == 105


async def test_unknown_account_is_on_the_default_plan(account: Account) -> None:
    bill = await preview(account)
    assert (bill.plan, bill.price, bill.total.amount) == ("free", "", "0.00")
    assert bill.HasField("period_start")


async def test_correction_lowers_the_bill(account: Account) -> None:
    await account.subscribe("standard")
    await account.record("e1", "agent_executions", 5_500)
    await account.correct("c1", "e1", 200)
    bill = await preview(account)
    assert (line(bill, "agent_executions").billable, bill.total.amount) == (300, "129.00")


async def test_override_counts_on_any_plan(account: Account) -> None:
    await account.subscribe("standard")
    await account.record("e1", "agent_executions", 100)
    await account.billing.admin.SetOverride(
        admin_pb2.SetOverrideRequest(
            account_id=account.account_id, meter="agent_executions", included=40, note="a test", request_id="r1"
        )
    )
    # What was recorded under the plan's own terms stays free.
    assert line(await preview(account), "agent_executions").billable == 0
    hypothetical = line(await preview(account, plan="standard"), "agent_executions")
    assert (hypothetical.included, hypothetical.billable) == (40, 0)
    enterprise = line(await preview(account, plan="enterprise"), "agent_executions")
    assert (enterprise.included, enterprise.billable, enterprise.amount.amount) == (40, 60, "3.00")


class TestSeats:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "orgs"

    async def test_seats_and_price_are_the_accounts_own(self, account: Account) -> None:
        await account.subscribe("team", price="yearly", quantity=4)
        bill = await preview(account)
        assert (bill.total.amount, bill.price, bill.lines[0].quantity) == ("600.00", "yearly", 4)
        # On another plan, its first price, for as many seats.
        bill = await preview(account, plan="business")
        assert (bill.total.amount, bill.price, bill.lines[0].quantity) == ("100.00", "monthly", 4)
        bill = await preview(account, quantity=5)
        assert bill.total.amount == "750.00"
        assert (await preview(account, plan="solo")).total.amount == "0.00"

    async def test_a_trial_is_noted_in_the_preview(self, account: Account) -> None:
        await account.subscribe("team", status="trialing", anchor=START + timedelta(days=14))
        bill = await preview(account)
        assert bill.lines[0].description == "Team, each month, 1 seat; nothing is charged during the trial"


class TestPayAsYouGo:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "kalshibook"

    async def test_what_was_charged_stays_on_the_bill_when_switched_off(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.switch_pay_as_you_go(on=True)
        await account.record("e1", "credits", 1_200)
        assert (await preview(account)).total.amount == "1.60"
        service_clock.advance(timedelta(hours=1))
        await account.switch_pay_as_you_go(on=False)
        bill = await preview(account)
        assert (bill.total.amount, bill.lines[0].billable, bill.lines[0].over_limit) == ("1.60", 200, False)
        usage = (await account.usage("credits"))["credits"]
        assert (usage.billable, usage.projected_overage_cost.amount) == (200, "1.60")
