"""A reserving check that is repeated gives the first answer again, whatever has changed meanwhile."""

import asyncio
from datetime import timedelta

import pytest

from billing.v1 import quota_pb2
from tests import clocks
from tests.acceptance.accounts import (
    ALLOWED,
    DENIED,
    GRACE,
    OVERAGE,
    PLAIN,
    SOFT_LIMIT,
    START,
    Account,
    publish,
)
from tests.billing_svc.service import CATALOGS, Billing

CLOSED = quota_pb2.RESERVATION_STATE_SETTLED


@pytest.fixture
def service_clock() -> clocks.StillClock:
    return clocks.StillClock(START)


async def hold(account: Account, meter: str, quantity: int, **fields: object) -> quota_pb2.CheckQuotaResponse:
    return await account.check(meter, quantity, reserve=True, request_id="job", **fields)


class TestMarketData:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "kalshibook"

    async def test_overage_is_told_again_after_pay_as_you_go_was_switched_off(self, account: Account) -> None:
        await account.subscribe("project")
        await account.switch_pay_as_you_go(on=True)
        await account.record("before", "credits", 3900)
        first = await hold(account, "credits", 1100)
        assert (first.decision, first.reason, first.projected_overage_cost.amount) == (ALLOWED, OVERAGE, "8.00")
        assert (first.used, first.reserved, first.remaining, first.pay_as_you_go) == (3900, 1100, 0, True)
        await account.switch_pay_as_you_go(on=False)
        await account.record("more", "credits", 50)
        assert await hold(account, "credits", 1100) == first
        assert await asyncio.gather(*(hold(account, "credits", 1100) for _ in range(5))) == [first] * 5

    async def test_a_closed_one_gives_its_first_numbers_and_what_became_of_it(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        first = await hold(account, "credits", 10)
        await account.record("run", "credits", 4, reservation_id=first.reservation_id)
        service_clock.advance(timedelta(days=40))
        again = await hold(account, "credits", 10, explain=True)
        assert (again.decision, again.reservation_state) == (DENIED, CLOSED)
        assert (again.used, again.reserved, again.remaining, again.cost) == (0, 10, 990, 10)
        assert (again.period_start, again.period_end) == (first.period_start, first.period_end)
        decided_at = first.reservation_expires_at.ToDatetime() - timedelta(minutes=15)
        assert (again.explanation.plan, again.explanation.decided_at.ToDatetime()) == ("free", decided_at)


class TestPlatform:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_grace_is_told_again_after_it_has_begun(self, account: Account) -> None:
        await account.record("before", "agent_executions", 101)
        first = await hold(account, "agent_executions", 5)
        assert (first.reason, first.HasField("grace_ends_at")) == (GRACE, True)
        await account.correct("fix", "before", 50)
        assert await hold(account, "agent_executions", 5) == first

    async def test_a_soft_limit_and_the_version_are_told_again(self, billing: Billing, account: Account) -> None:
        text = (CATALOGS / "agentplatform.yaml").read_text()
        await publish(billing, text.replace("beyond: grace", "beyond: allow"))
        first = await hold(account, "agent_executions", 101)
        assert first.reason == SOFT_LIMIT
        await publish(billing, text)
        again = await hold(account, "agent_executions", 101)
        assert again == first
        assert again.catalog_version == first.catalog_version
        assert (await account.check("agent_executions")).catalog_version > first.catalog_version
        assert (await account.check("agent_executions")).reason != PLAIN
