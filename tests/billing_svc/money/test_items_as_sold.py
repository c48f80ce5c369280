"""Metered items that are missing, added, at another price or on another meter than the plan as sold."""

from decimal import Decimal

import pytest

from billing.v1 import decision_pb2
from billing_svc.platform.findings import store as findings_store
from tests.billing_svc import refusals
from tests.billing_svc.money.ledger import TIERS, Ledger
from tests.billing_svc.subscriptions import dashboard

OVERLAY = TIERS.replace(
    """  big:
    name: Big""",
    """  casual:
    name: Casual
    prices:
      monthly: {amount: "5.00", interval: month}
    limits:
      runs: {included: 10, beyond: deny}
    pay_as_you_go:
      name: More
      limits: {runs: {included: 10, beyond: charge, unit_price: "0.20"}}
  big:
    name: Big""",
)


async def details(ledger: Ledger) -> list[str]:
    found = await ledger.world.billing.transactions.read(findings_store.list_open)
    return [one.detail for one in found if one.kind == "items_differ"]


async def metered(ledger: Ledger, key: str) -> tuple[str, str, str]:
    """Return the subscription, the price of a key and its meter's id."""
    (subscription,) = await ledger.at_stripe("active")
    price = await dashboard.price_of(ledger.world, key)
    found = await ledger.world.sandbox.call("GET", f"/v1/prices/{price}")
    return subscription["id"], price, found["recurring"]["meter"]


async def test_without_its_metered_item_overage_is_not_promised(tiers: Ledger) -> None:
    subscription_id, price, _ = await metered(tiers, "tiers_small_runs")
    assert (await tiers.check("runs", 101)).reason == decision_pb2.DECISION_REASON_OVERAGE
    await dashboard.remove_item(tiers.world, subscription_id, price)
    await tiers.work()
    assert await details(tiers) == ["differs from plan small as sold: no item bills tiers_small_runs"]
    assert "items_differ" in [kind for kind, _ in await tiers.differences()]
    beyond = await tiers.check("runs", 101)
    assert (beyond.decision, beyond.reason) == (
        decision_pb2.DECISION_DENIED,
        decision_pb2.DECISION_REASON_NOT_CHARGEABLE,
    )
    assert (await tiers.check("runs", 100)).decision == decision_pb2.DECISION_ALLOWED
    # The other meter's item is there.
    assert (await tiers.check("seats", 3)).reason == decision_pb2.DECISION_REASON_OVERAGE


async def test_units_that_were_used_all_the_same_are_charged_once(tiers: Ledger) -> None:
    subscription_id, price, _ = await metered(tiers, "tiers_small_runs")
    await dashboard.remove_item(tiers.world, subscription_id, price)
    await tiers.work()
    await tiers.use("runs", 107)
    await tiers.over_the_period_end()
    assert await tiers.charged_by_meters() == 7 * Decimal("0.10")
    assert [kind for kind, _ in await tiers.differences()] == ["items_differ"]


async def test_a_change_to_the_present_plan_puts_the_items_right(tiers: Ledger) -> None:
    subscription_id, price, _ = await metered(tiers, "tiers_small_runs")
    await dashboard.remove_item(tiers.world, subscription_id, price)
    await tiers.work()
    await tiers.change()
    await tiers.work()
    assert await details(tiers) == []
    assert (await tiers.check("runs", 101)).reason == decision_pb2.DECISION_REASON_OVERAGE
    assert await tiers.differences() == []


async def test_pay_as_you_go_is_refused_with_what_is_missing(ledger: Ledger) -> None:
    await ledger.sell(OVERLAY)
    await ledger.buy(plan="casual")
    subscription_id, price, _ = await metered(ledger, "tiers_casual_payg_runs")
    await dashboard.remove_item(ledger.world, subscription_id, price)
    await ledger.work()
    refused = await refusals.refused(ledger.switch(on=True))
    assert refused.reason == "ITEMS_MISSING"
    assert refused.metadata == {"subscription_id": subscription_id, "missing": "tiers_casual_payg_runs"}
    assert not (await ledger.told()).pay_as_you_go
    await ledger.change()
    assert (await ledger.switch(on=True)).pay_as_you_go


async def test_removed_while_it_is_on_overage_is_not_promised_any_more(ledger: Ledger) -> None:
    await ledger.sell(OVERLAY)
    await ledger.buy(plan="casual")
    await ledger.switch(on=True)
    assert (await ledger.check("runs", 11)).reason == decision_pb2.DECISION_REASON_OVERAGE
    subscription_id, price, _ = await metered(ledger, "tiers_casual_payg_runs")
    await dashboard.remove_item(ledger.world, subscription_id, price)
    await ledger.work()
    assert (await ledger.check("runs", 11)).reason == decision_pb2.DECISION_REASON_NOT_CHARGEABLE


async def test_another_price_on_the_meter_is_a_finding_and_charges_once(tiers: Ledger) -> None:
    subscription_id, price, meter = await metered(tiers, "tiers_small_runs")
    product = "tiers_small_runs"
    made = await dashboard.make_price(
        tiers.world, product, 4, **{"recurring[usage_type]": "metered", "recurring[meter]": meter}
    )
    await dashboard.remove_item(tiers.world, subscription_id, price)
    await dashboard.add_item(tiers.world, subscription_id, made)
    await tiers.work()
    (detail,) = await details(tiers)
    assert f"price {made} bills tiers_small_runs at 4 minor units instead of 10" in detail
    await tiers.use("runs", 105)
    await tiers.over_the_period_end()
    await tiers.advance(hours=3)
    assert await tiers.charged() == 2 * Decimal("10.00") + 5 * Decimal("0.04")
    assert [kind for kind, _ in await tiers.differences()] == ["items_differ"]
    # A repair does not charge again what the other price has charged, and neither does the end of the subscription.
    await tiers.differences(fix=True)
    await tiers.cancel()
    await tiers.advance(hours=4)
    assert await tiers.charged() == 2 * Decimal("10.00") + 5 * Decimal("0.04")


async def test_a_second_item_on_the_meter_charges_nothing(tiers: Ledger) -> None:
    subscription_id, _, meter = await metered(tiers, "tiers_small_runs")
    fields = {"recurring[usage_type]": "metered", "recurring[meter]": meter}
    await dashboard.add_item(
        tiers.world, subscription_id, await dashboard.make_price(tiers.world, "tiers_small_runs", 4, **fields)
    )
    await tiers.work()
    (detail,) = await details(tiers)
    assert "a second time" in detail
    await tiers.use("runs", 105)
    await tiers.over_the_period_end()
    assert await tiers.charged() == 2 * Decimal("10.00") + 5 * Decimal("0.10")


async def test_an_item_on_another_meter_is_a_finding(tiers: Ledger) -> None:
    subscription_id, price, _ = await metered(tiers, "tiers_small_runs")
    other = await tiers.world.sandbox.call(
        "POST",
        "/v1/billing/meters",
        display_name="Other",
        event_name="other",
        **{
            "default_aggregation[formula]": "sum",
            "customer_mapping[type]": "by_id",
            "customer_mapping[event_payload_key]": "stripe_customer_id",
            "value_settings[event_payload_key]": "value",
        },
    )
    fields = {"recurring[usage_type]": "metered", "recurring[meter]": other["id"]}
    made = await dashboard.make_price(tiers.world, "tiers_small_runs", 10, **fields)
    await dashboard.remove_item(tiers.world, subscription_id, price)
    await dashboard.add_item(tiers.world, subscription_id, made)
    await tiers.work()
    (detail,) = await details(tiers)
    assert detail.endswith(f"no item bills tiers_small_runs; metered price {made} was added")
    assert (await tiers.check("runs", 101)).reason == decision_pb2.DECISION_REASON_NOT_CHARGEABLE


@pytest.mark.parametrize("key", ["tiers_big_runs"])
async def test_an_item_of_another_plan_is_a_finding(tiers: Ledger, key: str) -> None:
    subscription_id, _, _ = await metered(tiers, "tiers_small_runs")
    await dashboard.add_item(tiers.world, subscription_id, await dashboard.price_of(tiers.world, key))
    await tiers.work()
    (detail,) = await details(tiers)
    assert f"of {key} was added" in detail
    assert (await tiers.told()).plan == "small"
    await tiers.change()
    await tiers.work()
    assert await tiers.differences() == []
