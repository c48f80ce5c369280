"""GetUsage of the present period."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest

from billing.v1 import plan_pb2, usage_pb2
from tests.acceptance.accounts import START, Account
from tests.billing_svc import books
from tests.billing_svc.refusals import refused
from tests.billing_svc.service import Billing


@pytest.fixture
def catalog_name() -> str:
    return "agentplatform"


async def statement(account: Account, **fields: object) -> usage_pb2.GetUsageResponse:
    request = usage_pb2.GetUsageRequest(account_id=account.account_id, **fields)  # type: ignore[arg-type]
    return await account.billing.usage.GetUsage(request)


async def test_unknown_account_is_told_of_the_default_plan_and_not_made(account: Account) -> None:
    before = await books.contents(account.billing.engine)
    told = await statement(account)
    assert (told.plan, told.plan_name, told.catalog_version) == ("free", "Free", 1)
    assert told.period_start.ToDatetime(UTC) == datetime(2026, 5, 1, tzinfo=UTC)
    assert told.period_end.ToDatetime(UTC) == datetime(2026, 6, 1, tzinfo=UTC)
    names = ["llm_tokens", "agent_executions", "api_calls", "storage_gb", "user_seats"]
    assert [one.meter for one in told.meters] == names
    assert {(one.used, one.billable, one.reserved, one.percent) for one in told.meters} == {(0, 0, 0, 0)}
    assert all(one.in_plan and not one.HasField("projected_overage_cost") for one in told.meters)
    assert await books.contents(account.billing.engine) == before


async def test_overage_is_told_with_its_exact_cost(account: Account) -> None:
    await account.subscribe("standard")
    await account.record("e1", "llm_tokens", 1_500_001)
    [line] = (await statement(account, meters=["llm_tokens"])).meters
    assert (line.used, line.included, line.billable, line.remaining) == (1_500_001, 1_000_000, 500_001, 0)
    assert (line.percent, line.unit, line.beyond) == (150, "token", plan_pb2.BEYOND_CHARGE)
    assert (line.projected_overage_cost.amount, line.projected_overage_cost.currency) == ("5.00001", "usd")


async def test_gauge_is_told_with_level_and_peak(account: Account) -> None:
    await account.subscribe("standard")
    await account.record("s1", "user_seats", level=27)
    await account.record("s2", "user_seats", -4)
    [line] = (await statement(account, meters=["user_seats"])).meters
    assert (line.used, line.peak, line.billable, line.remaining) == (23, 27, 2, 2)
    assert line.projected_overage_cost.amount == "10.00"
    assert line.kind == plan_pb2.METER_KIND_GAUGE


async def test_unlimited_meter_says_so_and_nothing_else(account: Account) -> None:
    await account.subscribe("enterprise")
    await account.record("s1", "user_seats", level=9)
    [line] = (await statement(account, meters=["user_seats"])).meters
    assert (line.unlimited, line.included, line.percent, line.remaining) == (True, 0, 0, 0)
    assert line.beyond == plan_pb2.BEYOND_UNSPECIFIED


async def test_grace_is_told_while_it_runs(account: Account) -> None:
    await account.record("e1", "agent_executions", 100)
    [line] = (await statement(account, meters=["agent_executions"])).meters
    assert not line.HasField("grace_ends_at")
    await account.record("e2", "agent_executions", 1)
    [line] = (await statement(account, meters=["agent_executions"])).meters
    assert line.grace_ends_at.ToDatetime(UTC) == START + timedelta(hours=24)


async def test_meters_are_told_in_catalog_order_once_each(account: Account) -> None:
    told = await statement(account, meters=["user_seats", "api_calls", "user_seats"])
    assert [one.meter for one in told.meters] == ["api_calls", "user_seats"]


async def test_an_instant_of_the_present_period_is_the_present_period(account: Account) -> None:
    await account.record("e1", "api_calls", 3)
    at = datetime(2026, 5, 1, tzinfo=UTC)
    told = await statement(account, period_containing=at)
    assert told == await statement(account)
    # Clocks of callers run ahead a little.
    assert told == await statement(account, period_containing=account.now + timedelta(minutes=4))


async def test_misuse_is_refused_by_field(billing: Billing, account: Account) -> None:
    async def get(**fields: object) -> tuple[grpc.StatusCode, str, tuple[str, ...]]:
        refusal = await refused(statement(account, **fields))
        return refusal.code, refusal.reason, refusal.fields

    invalid, reason = grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"
    assert await get(period_containing=account.now + timedelta(days=1)) == (invalid, reason, ("period_containing",))
    assert await get(period_containing=account.now - timedelta(days=401)) == (invalid, reason, ("period_containing",))
    assert await get(meters=["a"] * 101) == (invalid, reason, ("meters",))
    assert await get(meters=["Bad"]) == (invalid, reason, ("meters[0]",))
    assert await get(meters=["nothing"]) == (grpc.StatusCode.NOT_FOUND, "METER_NOT_FOUND", ())
    refusal = await refused(billing.usage.GetUsage(usage_pb2.GetUsageRequest()))
    assert refusal.fields == ("account_id",)
