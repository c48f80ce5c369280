"""PreviewCost for a plan and quantities, without an account."""

from collections.abc import Mapping

import grpc
import pytest

from billing.v1 import subscription_pb2
from tests.billing_svc import books
from tests.billing_svc.refusals import refused
from tests.billing_svc.service import Billing

Preview = subscription_pb2.PreviewCostResponse
# Section 3's example.
USED = {"llm_tokens": 1_500_000, "agent_executions": 5_500, "api_calls": 120_000, "storage_gb": 105, "user_seats": 27}


def request(
    plan: str = "", used: Mapping[str, int] | None = None, **fields: object
) -> subscription_pb2.PreviewCostRequest:
    usage = [subscription_pb2.MeterQuantity(meter=meter, quantity=units) for meter, units in (used or {}).items()]
    return subscription_pb2.PreviewCostRequest(plan=plan, usage=usage, **fields)  # type: ignore[arg-type]


def amounts(bill: Preview) -> dict[str, str]:
    return {line.meter: line.amount.amount for line in bill.lines}


class TestAgentplatform:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_standard_comes_to_186_50(self, billing: Billing) -> None:
        before = await books.contents(billing.engine)
        bill = await billing.subscriptions.PreviewCost(request("standard", USED))
        assert (bill.total.amount, bill.total.currency) == ("186.50", "usd")
        assert (bill.plan, bill.price, bill.catalog_version) == ("standard", "monthly", 1)
        assert list(amounts(bill).items()) == [
            ("", "99.00"),
            ("llm_tokens", "5.00"),
            ("agent_executions", "50.00"),
            ("api_calls", "20.00"),
            ("storage_gb", "2.50"),
            ("user_seats", "10.00"),
        ]
        tokens = bill.lines[1]
        assert (tokens.quantity, tokens.included, tokens.billable) == (1_500_000, 1_000_000, 500_000)
        # As a pricing page writes it.
        assert (tokens.unit_price.amount, tokens.unit_price_units) == ("0.01", 1000)
        assert not bill.HasField("period_start")
        assert not bill.HasField("period_end")
        assert await books.contents(billing.engine) == before

    async def test_enterprise_has_half_the_prices_and_unlimited_seats(self, billing: Billing) -> None:
        used = {"llm_tokens": 10_001_000, "api_calls": 1_000_001, "user_seats": 9_999}
        bill = await billing.subscriptions.PreviewCost(request("enterprise", used))
        lines = {line.meter: line for line in bill.lines}
        assert amounts(bill)["llm_tokens"] == "0.01"  # 0.005 exactly
        assert amounts(bill)["api_calls"] == "0.00"  # 0.0005
        seats = lines["user_seats"]
        assert (seats.unlimited, seats.included, seats.billable, seats.amount.amount) == (True, 0, 0, "0.00")
        assert not seats.HasField("unit_price")
        assert bill.total.amount == "499.01"

    async def test_plan_that_would_deny_says_so_and_charges_nothing(self, billing: Billing) -> None:
        used = {"llm_tokens": 10_001, "agent_executions": 100, "user_seats": 4}
        bill = await billing.subscriptions.PreviewCost(request("free", used))
        assert (bill.total.amount, bill.price) == ("0.00", "")
        over = {line.meter: line.over_limit for line in bill.lines}
        assert over == {
            "llm_tokens": True,
            "agent_executions": False,
            "api_calls": False,
            "storage_gb": False,
            "user_seats": True,
        }

    async def test_misuse_is_refused(self, billing: Billing) -> None:
        async def told(asked: subscription_pb2.PreviewCostRequest) -> tuple[str, tuple[str, ...]]:
            refusal = await refused(billing.subscriptions.PreviewCost(asked))
            return refusal.reason, refusal.fields

        assert await told(request()) == ("INVALID_REQUEST", ("plan",))
        assert await told(request("nothing")) == ("PLAN_NOT_FOUND", ())
        assert await told(request("standard", price="weekly")) == ("PRICE_NOT_FOUND", ())
        assert await told(request("standard", {"runs": 1})) == ("METER_NOT_FOUND", ())
        assert await told(request("standard", {"api_calls": -1})) == ("INVALID_REQUEST", ("usage[0].quantity",))
        assert await told(request("standard", {"api_calls": 10**12 + 1})) == ("INVALID_REQUEST", ("usage[0].quantity",))
        assert await told(request("standard", quantity=2)) == ("INVALID_REQUEST", ("quantity",))
        assert await told(request("standard", quantity=0)) == ("INVALID_REQUEST", ("quantity",))
        assert await told(request("standard", pay_as_you_go=True)) == ("PAY_AS_YOU_GO_NOT_OFFERED", ())
        twice = request("standard", {"api_calls": 1})
        twice.usage.add(meter="api_calls", quantity=2)
        assert await told(twice) == ("INVALID_REQUEST", ("usage[1].meter",))
        many = request("standard")
        for n in range(101):
            many.usage.add(meter=f"m{n}")
        assert await told(many) == ("INVALID_REQUEST", ("usage",))
        assert (await refused(billing.subscriptions.PreviewCost(request("nothing")))).code == grpc.StatusCode.NOT_FOUND


class TestOrgs:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "orgs"

    async def test_seats_multiply_the_price_and_what_is_included(self, billing: Billing) -> None:
        bill = await billing.subscriptions.PreviewCost(request("team", {"exports": 2_001, "members": 10}, quantity=10))
        base, lines = bill.lines[0], {line.meter: line for line in bill.lines}
        assert (base.quantity, base.billable, base.unit_price.amount, base.amount.amount) == (10, 10, "15.00", "150.00")
        assert (lines["members"].included, lines["members"].over_limit) == (10, False)
        # Grace: denied in the end.
        assert (lines["exports"].included, lines["exports"].over_limit) == (2_000, True)
        assert bill.total.amount == "150.00"

    async def test_yearly_price_is_billed_for_its_own_interval(self, billing: Billing) -> None:
        bill = await billing.subscriptions.PreviewCost(request("starter", price="yearly", quantity=3))
        assert (bill.total.amount, bill.price) == ("240.00", "yearly")
        assert bill.lines[0].description == (
            "Starter, each year, 3 seats; the first 14 days of a new subscription are free"
        )

    async def test_soft_limit_is_no_limit_to_be_over(self, billing: Billing) -> None:
        bill = await billing.subscriptions.PreviewCost(request("business", {"exports": 1_001}))
        exports = {line.meter: line for line in bill.lines}["exports"]
        assert (exports.over_limit, exports.billable, exports.amount.amount) == (False, 0, "0.00")


class TestKalshibook:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "kalshibook"

    async def test_overlay_charges_what_the_plan_denies(self, billing: Billing) -> None:
        off = await billing.subscriptions.PreviewCost(request("free", {"credits": 1_500}))
        assert (off.total.amount, off.lines[0].over_limit) == ("0.00", True)
        on = await billing.subscriptions.PreviewCost(request("free", {"credits": 1_500}, pay_as_you_go=True))
        assert (on.total.amount, on.lines[0].over_limit, on.lines[0].billable) == ("4.00", False, 500)
        project = await billing.subscriptions.PreviewCost(request("project", {"credits": 4_001}, pay_as_you_go=True))
        # 0.8 cents are one.
        assert project.total.amount == "30.01"
