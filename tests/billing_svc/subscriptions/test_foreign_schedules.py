"""Schedules that somebody else made at Stripe: no change ends one in passing."""

import pytest
import sqlalchemy as sa

from billing.v1 import subscription_pb2
from billing_svc.platform.database import tables
from tests.billing_svc import refusals
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW, Dealing


@pytest.fixture
def catalog_name() -> str:
    return "orgs"


async def with_a_sales_schedule(deal: Dealing) -> tuple[str, str]:
    """Buy, and let a salesperson attach a schedule; returns both ids."""
    subscription_id = await deal.buy(plan="team", quantity=3)
    schedule = await deal.world.sandbox.call("POST", "/v1/subscription_schedules", from_subscription=subscription_id)
    await deal.world.deliver_new()
    return subscription_id, str(schedule["id"])


def calls(deal: Dealing, request_id: str, *, release: bool) -> dict[str, object]:
    return {"account_id": deal.account_id, "request_id": request_id, "release_foreign_schedule": release}


async def schedule_status(deal: Dealing, schedule_id: str) -> str:
    return str((await deal.world.sandbox.call("GET", f"/v1/subscription_schedules/{schedule_id}"))["status"])


@pytest.mark.parametrize("timing", [NOW, AT_PERIOD_END])
@pytest.mark.parametrize("kind", ["change", "cancel"])
async def test_a_foreign_schedule_is_released_only_if_the_request_says_so(
    deal: Dealing, kind: str, timing: subscription_pb2.Timing.ValueType
) -> None:
    subscription_id, schedule_id = await with_a_sales_schedule(deal)
    api = deal.world.billing.subscriptions

    async def call(*, release: bool) -> object:
        asked = {"timing": timing, **calls(deal, "r1", release=release)}
        if kind == "change":
            return await api.ChangePlan(subscription_pb2.ChangePlanRequest(quantity=5, **asked))  # type: ignore[arg-type]
        return await api.CancelSubscription(subscription_pb2.CancelSubscriptionRequest(**asked))  # type: ignore[arg-type]

    before = await deal.world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}")
    refusal = await refusals.refused(call(release=False))
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "FOREIGN_SCHEDULE")
    assert refusal.metadata == {
        "account_id": "org_1",
        "subscription_id": subscription_id,
        "schedule_id": schedule_id,
    }
    assert await deal.world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}") == before
    assert await deal.world.rows(tables.change_requests) == []
    await call(release=True)
    assert await schedule_status(deal, schedule_id) == "released"
    (entry,) = await deal.world.rows(
        tables.audit_log, tables.audit_log.c.action == "subscription.foreign_schedule_released"
    )
    assert entry.changes == {"subscription": subscription_id, "schedule": schedule_id}
    assert entry.actor == "caller:test"


async def test_a_preview_tells_of_the_foreign_schedule_and_releases_nothing(deal: Dealing) -> None:
    _, schedule_id = await with_a_sales_schedule(deal)
    refusal = await refusals.refused(deal.change(preview=True, quantity=5))
    assert refusal.reason == "FOREIGN_SCHEDULE"
    await deal.change(preview=True, quantity=5, release_foreign_schedule=True)
    assert await schedule_status(deal, schedule_id) == "active"
    assert await deal.world.rows(tables.audit_log, sa.func.strpos(tables.audit_log.c.action, "foreign") > 0) == []


async def test_resuming_ends_no_foreign_schedule_either(deal: Dealing) -> None:
    subscription_id = await deal.buy(plan="team", quantity=3)
    await deal.cancel(AT_PERIOD_END)
    schedule = await deal.world.sandbox.call("POST", "/v1/subscription_schedules", from_subscription=subscription_id)
    assert (await refusals.refused(deal.resume("r1"))).metadata["schedule_id"] == schedule["id"]
    request = subscription_pb2.ResumeSubscriptionRequest(**calls(deal, "r1", release=True))  # type: ignore[arg-type]
    await deal.world.billing.subscriptions.ResumeSubscription(request)
    assert await schedule_status(deal, str(schedule["id"])) == "released"


async def test_our_own_schedule_is_replaced_as_before(deal: Dealing) -> None:
    await deal.buy(plan="team", quantity=3)
    await deal.change(AT_PERIOD_END, quantity=5)
    await deal.change(AT_PERIOD_END, quantity=7)
    assert (await deal.told()).pending_change.quantity == 7
    await deal.change(NOW, quantity=4)
    assert (await deal.told()).quantity == 4
