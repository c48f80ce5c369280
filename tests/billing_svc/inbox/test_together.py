"""Stripe's clock and ours, advanced together through a subscription's life."""

from datetime import timedelta

from tests.billing_svc.sandboxed import World

DAY = timedelta(days=1)


async def test_a_period_ends_for_both_at_the_same_instant(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    first = await world.subscription()

    happened = await world.advance(35 * DAY)

    second = await world.subscription()
    assert second.period_start == first.period_end
    assert "renews" in happened
    stripe_now = (await world.sandbox.control("GET", "clock"))["now"]
    assert abs(world.billing.clock.now().timestamp() - stripe_now) < 2


async def test_each_step_lets_the_worker_act(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    seen: list[int] = []

    async def look() -> None:
        seen.append(int(world.billing.clock.now().timestamp()))

    happened = await world.advance(35 * DAY, look)

    assert len(seen) >= len(set(happened))
    assert sorted(seen) == seen
    seen.clear()
    await world.advance(DAY, look, apart=timedelta(hours=6))
    assert len(seen) >= 4


async def test_a_card_that_is_declined_makes_it_past_due(world: World) -> None:
    subscription_id = await world.subscribe()
    await world.deliver_new()
    sold = await world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}")
    await world.sandbox.control("POST", "cards", {"customer": sold["customer"], "card": "declines"})

    await world.advance(32 * DAY)

    assert (await world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}"))["status"] == "past_due"
