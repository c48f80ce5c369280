"""CheckQuota with explain: what produced the decision."""

from datetime import UTC, timedelta

import pytest

from billing.v1 import admin_pb2, plan_pb2, quota_pb2, subscription_pb2
from tests import clocks
from tests.acceptance.accounts import RATE_LIMITED, START, Account
from tests.billing_svc import books


@pytest.fixture
def service_clock() -> clocks.StillClock:
    return clocks.StillClock(START)


@pytest.fixture
def catalog_name() -> str:
    return "kalshibook"


async def explained(account: Account, meter: str = "credits") -> quota_pb2.Explanation:
    return (await account.check(meter, explain=True)).explanation


async def test_nothing_is_explained_unasked(account: Account) -> None:
    assert not (await account.check("credits")).HasField("explanation")


async def test_the_default_plan_is_explained_without_a_subscription(account: Account) -> None:
    told = await explained(account)
    assert told.decided_at.ToDatetime(UTC) == START
    assert (told.catalog, told.catalog_version, told.plan, told.subscription_id) == ("kalshibook", 1, "free", "")
    assert (told.status, told.seats, told.pay_as_you_go) == (subscription_pb2.STATUS_NONE, 1, False)
    assert (told.limit.included, told.limit.beyond) == (1_000, plan_pb2.BEYOND_DENY)
    assert told.quota_period == plan_pb2.QUOTA_PERIOD_CALENDAR_MONTH
    assert not told.HasField("quota_period_anchor")
    assert not told.HasField("override")
    assert not told.HasField("grace_began_at")
    assert told.steps


async def test_a_subscription_is_explained_with_its_anchor(account: Account) -> None:
    anchor = START - timedelta(days=20)
    await account.subscribe("project", anchor=anchor, status="past_due")
    told = await explained(account)
    assert (told.plan, told.subscription_id, told.status) == ("project", "sub_1", subscription_pb2.STATUS_PAST_DUE)
    assert told.quota_period == plan_pb2.QUOTA_PERIOD_SUBSCRIPTION
    assert told.quota_period_anchor.ToDatetime(UTC) == anchor


async def test_pay_as_you_go_is_explained_by_its_own_terms(account: Account) -> None:
    await account.switch_pay_as_you_go(on=True)
    told = await explained(account)
    assert (told.pay_as_you_go, told.limit.beyond) == (True, plan_pb2.BEYOND_CHARGE)
    assert (told.limit.unit_price.amount, told.rate_limit.requests) == ("0.008", 60)


async def test_override_stands_beside_the_plans_own_limit(account: Account) -> None:
    request = admin_pb2.SetOverrideRequest(
        account_id=account.account_id, meter="credits", included=7, note="a test", request_id="r1"
    )
    override = (await account.billing.admin.SetOverride(request)).override
    told = await explained(account)
    assert (told.override, told.limit.included) == (override, 1_000)


async def test_rate_limit_counts_this_check_if_it_was_admitted(
    account: Account, service_clock: clocks.StillClock
) -> None:
    assert [(await explained(account)).rate_limit_used for _ in range(3)] == [1, 2, 3]
    # A denied one consumes nothing.
    denied = await account.check("credits", 1_001, explain=True)
    assert denied.explanation.rate_limit_used == 3
    for _ in range(27):
        await account.check("credits")
    limited = await account.check("credits", explain=True)
    assert limited.reason == RATE_LIMITED
    assert (limited.explanation.rate_limit.requests, limited.explanation.rate_limit_used) == (30, 30)
    assert limited.explanation.rate_limit.window.ToTimedelta() == timedelta(minutes=1)
    service_clock.advance(timedelta(minutes=1))
    assert (await explained(account)).rate_limit_used == 1


class TestWithoutRateLimit:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "agentplatform"

    async def test_running_grace_is_explained_with_its_beginning(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.record("e1", "agent_executions", 100)
        assert not (await explained(account, "agent_executions")).HasField("grace_began_at")
        await account.record("e2", "agent_executions", 1)
        service_clock.advance(timedelta(hours=2))
        told = await explained(account, "agent_executions")
        assert told.grace_began_at.ToDatetime(UTC) == START
        assert told.limit.grace_period.ToTimedelta() == timedelta(hours=24)
        assert not told.HasField("rate_limit")
        assert told.rate_limit_used == 0

    async def test_explaining_writes_nothing(self, account: Account) -> None:
        before = await books.contents(account.billing.engine)
        await explained(account, "agent_executions")
        assert await books.contents(account.billing.engine) == before


class TestSignup:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "orgs"

    async def test_anchor_is_the_beginning_of_the_account(
        self, account: Account, service_clock: clocks.StillClock
    ) -> None:
        await account.record("e1", "exports", 1)
        service_clock.advance(timedelta(days=3))
        told = await explained(account, "exports")
        assert told.quota_period == plan_pb2.QUOTA_PERIOD_SIGNUP_ANNIVERSARY
        assert told.quota_period_anchor.ToDatetime(UTC) == START

    async def test_seats_are_explained_beside_the_limit_per_seat(self, account: Account) -> None:
        await account.subscribe("team", quantity=4)
        check = await account.check("members", explain=True)
        assert (check.included, check.explanation.seats, check.explanation.limit.included) == (4, 4, 1)
        assert check.explanation.limit.per_seat

    async def test_override_stands_beside_unlimited(self, account: Account) -> None:
        await account.subscribe("business", quantity=2)
        request = admin_pb2.SetOverrideRequest(
            account_id=account.account_id, meter="projects", included=1, note="a test", request_id="r1"
        )
        await account.billing.admin.SetOverride(request)
        told = await explained(account, "projects")
        assert (told.limit.unlimited, told.override.included) == (True, 1)
