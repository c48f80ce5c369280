"""What a statement shows where the plan lacks meters, or changes."""

from datetime import timedelta

import pytest

from billing.v1 import usage_pb2
from tests.acceptance.accounts import Account, publish
from tests.billing_svc.service import CATALOGS


@pytest.fixture
def catalog_name() -> str:
    return "automation"


async def statement(account: Account, *meters: str) -> usage_pb2.GetUsageResponse:
    return await account.billing.usage.GetUsage(usage_pb2.GetUsageRequest(account_id=account.account_id, meters=meters))


async def test_without_a_plan_only_what_was_used_is_shown(account: Account) -> None:
    told = await statement(account)
    assert (told.plan, list(told.meters)) == ("none", [])
    assert told.HasField("period_start")
    await account.record("e1", "tokens", 5)
    [line] = (await statement(account)).meters
    assert (line.meter, line.used, line.billable, line.in_plan) == ("tokens", 5, 0, False)
    [line] = (await statement(account, "api_calls")).meters
    assert (line.meter, line.used, line.in_plan) == ("api_calls", 0, False)


async def test_a_meter_of_a_catalog_that_another_process_published_is_shown(account: Account) -> None:
    await account.subscribe("basic")
    assert [one.meter for one in (await statement(account)).meters] == ["tokens", "api_calls", "scraping_tasks"]
    text = (CATALOGS / "automation.yaml").read_text()
    text = text.replace("meters:\n", "meters:\n  pages: {unit: page, kind: consumable}\n", 1)
    await publish(account.billing, text)
    account.billing.clock.advance(timedelta(minutes=1))
    # The sold version lacks it, so it is not in the plan.
    assert [one.meter for one in (await statement(account)).meters] == ["tokens", "api_calls", "scraping_tasks"]
    [line] = (await statement(account, "pages")).meters
    assert not line.in_plan
    await account.record("e1", "pages", 2)
    told = {one.meter: one for one in (await statement(account)).meters}
    assert (told["pages"].used, told["pages"].in_plan, told["pages"].billable) == (2, False, 0)
