from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing.v1 import subscription_pb2
from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import apply_subscription
from tests.billing_svc import refusals
from tests.billing_svc.sandboxed import World


async def bought(world: World) -> dict[str, Any]:
    subscription_id = await world.subscribe()
    await world.deliver(*await world.events("customer.subscription."))
    await world.apply_all()
    return await world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}")


async def change(world: World, data: Mapping[str, Any], **fields: object) -> subscription_pb2.Subscription:
    """Apply a state that the sandbox cannot produce, as if it had been fetched."""
    fetched = stripe_subscriptions.from_stripe({**data, **fields})
    now = world.billing.clock.now()
    await world.billing.transactions.run(
        lambda conn: apply_subscription.apply(
            conn, versions.CatalogCache(), fetched, audit_store.Origin("stripe:evt"), now
        )
    )
    return await world.subscription()


async def test_an_unknown_account_has_the_default_plan_and_no_subscription(world: World) -> None:
    answer = await world.subscription("nobody")
    assert (answer.plan, answer.plan_name, answer.status) == ("free", "Free", subscription_pb2.STATUS_NONE)
    assert not answer.subscription_id
    assert answer.period_start.ToDatetime().day == 1
    assert (await refusals.refused(world.subscription(""))).fields == ("account_id",)


async def test_an_active_one_tells_its_price_and_billing_period(world: World) -> None:
    data = await bought(world)
    answer = await world.subscription()
    assert (answer.plan, answer.price, answer.quantity) == ("pro", "monthly", 1)
    assert (answer.status, answer.subscription_id) == (subscription_pb2.STATUS_ACTIVE, data["id"])
    item = data["items"]["data"][0]
    assert answer.period_start.seconds == item["current_period_start"]
    assert answer.period_end.seconds == item["current_period_end"]
    assert not answer.HasField("cancel_at")
    assert not answer.past_due


async def test_past_due_keeps_the_plan_and_says_so(world: World) -> None:
    answer = await change(world, await bought(world), status="past_due")
    assert (answer.plan, answer.status, answer.past_due) == ("pro", subscription_pb2.STATUS_PAST_DUE, True)


async def test_trialing_gives_the_plan(world: World) -> None:
    end = int((clock.Clock().now() + timedelta(days=14)).timestamp())
    answer = await change(world, await bought(world), status="trialing", trial_end=end)
    assert (answer.plan, answer.status) == ("pro", subscription_pb2.STATUS_TRIALING)
    assert answer.trial_end.seconds == end


@pytest.mark.parametrize("status", ["incomplete", "incomplete_expired", "unpaid", "paused", "canceled"])
async def test_what_gives_nothing_leaves_the_default_plan(world: World, status: str) -> None:
    answer = await change(world, await bought(world), status=status)
    assert (answer.plan, answer.status) == ("free", subscription_pb2.Status.Value(f"STATUS_{status.upper()}"))
    assert not answer.past_due


async def test_an_unknown_status_keeps_what_was(world: World) -> None:
    answer = await change(world, await bought(world), status="gone_fishing")
    assert (answer.plan, answer.status) == ("pro", subscription_pb2.STATUS_UNKNOWN)


async def test_a_cancellation_at_period_end_tells_when_and_ends_then_without_any_event(world: World) -> None:
    data = await bought(world)
    end = data["items"]["data"][0]["current_period_end"]
    await world.sandbox.call("POST", f"/v1/subscriptions/{data['id']}", cancel_at_period_end="true")
    await world.deliver(*await world.events("customer.subscription.updated"))
    await world.apply_all()
    answer = await world.subscription()
    assert (answer.plan, answer.cancel_at_period_end, answer.cancel_at.seconds) == ("pro", True, end)
    world.billing.clock.advance(datetime.fromtimestamp(end, UTC) - world.billing.clock.now())
    assert (await world.subscription()).plan == "free"
    # Resumed in time, it continues.
    await world.sandbox.call("POST", f"/v1/subscriptions/{data['id']}", cancel_at_period_end="false")
    await world.deliver(*await world.events("customer.subscription.updated"))
    await world.apply_all()
    answer = await world.subscription()
    assert (answer.plan, answer.cancel_at_period_end, answer.HasField("cancel_at")) == ("pro", False, False)


async def test_a_cancellation_of_the_portal_s_kind_is_told_as_well(world: World) -> None:
    data = await bought(world)
    at = int(clock.Clock().now().timestamp()) + 3600
    await world.sandbox.call("POST", f"/v1/subscriptions/{data['id']}", cancel_at=at)
    await world.deliver(*await world.events("customer.subscription.updated"))
    await world.apply_all()
    answer = await world.subscription()
    assert (answer.cancel_at_period_end, answer.cancel_at.seconds) == (False, at)
