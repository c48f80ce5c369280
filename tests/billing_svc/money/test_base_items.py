"""Base items that people made or added at Stripe: the plan holds, and a change or an end leaves none behind."""

from decimal import Decimal

from billing.v1 import subscription_pb2
from billing_svc.platform.database import tables
from tests.billing_svc import refusals
from tests.billing_svc.money.ledger import TIERS, Ledger
from tests.billing_svc.subscriptions import dashboard
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW

PAY_AS_YOU_GO = TIERS.replace(
    """  small:
    name: Small""",
    """    pay_as_you_go:
      name: More
      limits: {runs: {included: 5, beyond: charge, unit_price: "0.20"}}
  small:
    name: Small""",
)


async def negotiated(tiers: Ledger, amount: int = 700) -> str:
    """Give the account a price made by hand for its plan, and return it."""
    world = tiers.world
    price = await dashboard.make_price(world, "tiers_small", amount)
    (subscription,) = await tiers.at_stripe()
    await dashboard.replace_item(
        world, subscription["id"], await dashboard.price_of(world, "tiers_small_monthly"), price
    )
    await tiers.work()
    return price


async def base_prices(tiers: Ledger) -> list[str]:
    """Return the prices of the living subscriptions' items that are not metered."""
    return [
        item["price"]["id"]
        for one in await tiers.at_stripe("active")
        for item in one["items"]["data"]
        if item["price"]["recurring"]["usage_type"] == "licensed"
    ]


async def test_a_price_made_by_hand_for_a_plan_gives_the_plan(tiers: Ledger) -> None:
    price = await negotiated(tiers)
    told = await tiers.told()
    assert (told.plan, told.price, told.status) == ("small", "", subscription_pb2.STATUS_ACTIVE)
    custom = told.custom_price
    assert (custom.price_id, custom.amount.amount, custom.amount.currency) == (price, "7.00", "usd")
    assert (custom.interval, custom.interval_count) == ("month", 1)
    await tiers.use("runs", 103)
    await tiers.over_the_period_end()
    assert await tiers.charged() == Decimal("10.00") + Decimal("7.00") + 3 * Decimal("0.10")
    assert await tiers.differences() == []


async def test_cancelled_now_it_ends(tiers: Ledger) -> None:
    await negotiated(tiers)
    told = await tiers.cancel(NOW)
    assert (told.plan, told.status) == ("free", subscription_pb2.STATUS_CANCELED)
    assert [one["status"] for one in await tiers.at_stripe()] == ["canceled"]
    await tiers.work()
    assert await tiers.differences() == []


async def test_changed_now_it_is_replaced(tiers: Ledger) -> None:
    await negotiated(tiers)
    assert (await tiers.change(plan="big")).subscription.plan == "big"
    assert await base_prices(tiers) == [await dashboard.price_of(tiers.world, "tiers_big_monthly")]
    told = await tiers.told()
    assert (told.price, told.HasField("custom_price")) == ("monthly", False)


async def test_changed_at_the_period_end_it_is_replaced(tiers: Ledger) -> None:
    await negotiated(tiers)
    assert (await tiers.change(AT_PERIOD_END, plan="big")).subscription.pending_change.plan == "big"
    await tiers.over_the_period_end()
    assert (await tiers.told()).plan == "big"
    assert await base_prices(tiers) == [await dashboard.price_of(tiers.world, "tiers_big_monthly")]


async def test_what_is_left_out_of_a_change_stays(tiers: Ledger) -> None:
    price = await negotiated(tiers)
    assert (await refusals.refused(tiers.change())).reason == "PLAN_UNCHANGED"
    # The catalog's price, where it is named.
    await tiers.change(price="monthly")
    assert await base_prices(tiers) != [price]
    assert (await tiers.told()).price == "monthly"


async def test_an_override_of_the_price_keeps_the_version_that_was_sold(tiers: Ledger) -> None:
    await negotiated(tiers)
    (row,) = await tiers.world.rows(tables.subscriptions)
    assert row.catalog_version == (await tiers.told()).catalog_version


async def second_base(tiers: Ledger) -> str:
    (subscription,) = await tiers.at_stripe()
    await tiers.advance(seconds=10)
    await dashboard.add_item(
        tiers.world, subscription["id"], await dashboard.price_of(tiers.world, "tiers_big_monthly")
    )
    await tiers.work()
    return str(subscription["id"])


async def test_of_two_plans_on_a_subscription_the_item_added_last_counts(tiers: Ledger) -> None:
    subscription_id = await second_base(tiers)
    assert (await tiers.told()).plan == "big"
    kinds = [kind for kind, _ in await tiers.differences()]
    assert "two_plans" in kinds
    assert subscription_id


async def test_a_change_now_replaces_both(tiers: Ledger) -> None:
    await second_base(tiers)
    await tiers.change(plan="small")
    assert await base_prices(tiers) == [await dashboard.price_of(tiers.world, "tiers_small_monthly")]
    assert (await tiers.told()).plan == "small"
    await tiers.work()
    assert await tiers.differences() == []


async def test_the_plan_in_force_can_be_chosen_while_there_are_two(tiers: Ledger) -> None:
    await second_base(tiers)
    await tiers.change(plan="big")
    assert await base_prices(tiers) == [await dashboard.price_of(tiers.world, "tiers_big_monthly")]
    await tiers.work()
    assert await tiers.differences() == []


async def test_a_change_at_the_period_end_replaces_both(tiers: Ledger) -> None:
    await second_base(tiers)
    await tiers.change(AT_PERIOD_END, plan="small")
    await tiers.over_the_period_end()
    assert await base_prices(tiers) == [await dashboard.price_of(tiers.world, "tiers_small_monthly")]
    assert (await tiers.told()).plan == "small"


async def test_an_end_at_the_period_end_ends_both(tiers: Ledger) -> None:
    await second_base(tiers)
    await tiers.cancel(AT_PERIOD_END)
    await tiers.over_the_period_end()
    assert (await tiers.told()).plan == "free"
    assert await base_prices(tiers) == []
    assert await tiers.differences() == []


async def test_a_subscription_whose_base_item_is_removed_keeps_its_plan_and_goes_on(tiers: Ledger) -> None:
    """A person removes the item, and some minutes later adds it with a negotiated price."""
    (subscription,) = await tiers.at_stripe()
    await dashboard.remove_item(
        tiers.world, subscription["id"], await dashboard.price_of(tiers.world, "tiers_small_monthly")
    )
    await tiers.work()
    assert (await tiers.told()).plan == "small"
    assert "items_differ" in [kind for kind, _ in await tiers.differences()]
    await tiers.advance(minutes=5)
    (now,) = await tiers.at_stripe()
    assert (now["status"], now["cancel_at"]) == ("active", None)
    price = await dashboard.make_price(tiers.world, "tiers_small", 700)
    await dashboard.add_item(tiers.world, subscription["id"], price)
    await tiers.work()
    assert (await tiers.told()).custom_price.price_id == price
    await tiers.use("runs", 103)
    await tiers.over_the_period_end()
    assert await tiers.charged() == Decimal("10.00") + Decimal("7.00") + 3 * Decimal("0.10")
    assert await tiers.differences() == []


async def test_a_pay_as_you_go_subscription_that_gets_a_plan_is_not_ended_for_it(ledger: Ledger) -> None:
    """Within the minute in which the worker waits for pay-as-you-go to be switched on."""
    await ledger.sell(PAY_AS_YOU_GO)
    await ledger.buy(plan="small")
    await ledger.cancel(NOW)
    await ledger.work()
    metered = await dashboard.subscribe(ledger.world, await dashboard.price_of(ledger.world, "tiers_free_payg_runs"))
    await ledger.work()
    await dashboard.add_item(ledger.world, metered, await dashboard.price_of(ledger.world, "tiers_small_monthly"))
    await ledger.work()
    assert (await ledger.told()).plan == "small"
    await ledger.advance(minutes=2)
    assert [one["id"] for one in await ledger.at_stripe("active")] == [metered]
    assert (await ledger.told()).plan == "small"
