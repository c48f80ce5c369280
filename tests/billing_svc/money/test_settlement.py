"""What was charged is judged by sums, some time after each change (ADR 0025). The meters lag in all of these tests."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import TIERS, Ledger
from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions.dealing import NOW

SMALL, BIG = Decimal("0.10"), Decimal("0.05")


@pytest.fixture(autouse=True)
async def lag(world: World) -> None:
    await world.sandbox.control("POST", "delays", {"meters": 20})


async def items(tiers: Ledger, plan: str) -> None:
    """Replace the items by those of a plan, as a person in the dashboard does; the service does not hear of it yet."""
    (subscription,) = await tiers.at_stripe("active")
    prices = [row.price_id for row in await tiers.world.rows(tables.stripe_prices) if row.plan == plan]
    params: dict[str, object] = {"proration_behavior": "always_invoice"}
    for number, item in enumerate(subscription["items"]["data"]):
        params |= {f"items[{number}][id]": item["id"], f"items[{number}][deleted]": "true"}
    for number, price in enumerate(prices, len(subscription["items"]["data"])):
        params[f"items[{number}][price]"] = price
    await tiers.world.sandbox.call("POST", f"/v1/subscriptions/{subscription['id']}", **params)


async def drafts(tiers: Ledger) -> list[dict[str, Any]]:
    return await tiers.world.sandbox.all("/v1/invoices", status="draft")


@pytest.mark.parametrize("ends", [True, False])
async def test_what_was_accepted_seconds_before_is_charged_once(tiers: Ledger, *, ends: bool) -> None:
    await tiers.use("runs", 200)
    await tiers.work()
    await tiers.advance(minutes=1)
    await tiers.use("runs", 400)
    if ends:
        await tiers.cancel(NOW)
    else:
        await tiers.change(plan="big")
    assert await tiers.charged_by_meters() == 100 * SMALL
    await tiers.advance(hours=3)
    assert await tiers.charged_by_meters() == 500 * SMALL
    assert {row.state for row in await tiers.world.rows(tables.usage_reports)} == {"sent", "invoiced"}
    await tiers.advance(days=40)
    assert await tiers.charged_by_meters() == 500 * SMALL
    assert await tiers.differences(fix=True) == []


@pytest.mark.parametrize("heard", [True, False])
async def test_a_plan_that_returns_bills_only_what_was_used_since(tiers: Ledger, *, heard: bool) -> None:
    """Small, Big and Small again, while what was used on each of them is not sent yet."""
    await tiers.advance(days=2)
    await tiers.use("runs", 103)
    await tiers.world.sandbox.fault("unavailable", path="/v1/billing/meter_events", method="POST")
    await tiers.work()
    await tiers.world.advance(timedelta(minutes=1), deliver=False)
    await items(tiers, "big")
    if heard:
        await tiers.world.deliver_new()
        await tiers.use("runs", 107)
        await tiers.work()
    await tiers.world.advance(timedelta(minutes=1), deliver=False)
    await items(tiers, "small")
    await tiers.world.deliver_new()
    await tiers.use("runs", 2)
    await tiers.work()
    await tiers.world.sandbox.control("DELETE", "faults")
    await tiers.advance(hours=30)
    await tiers.over_the_period_end()
    await tiers.over_the_period_end()
    on_big = sum(row.billable for row in await tiers.world.rows(tables.usage_events) if row.plan == "big")
    on_small = sum(row.billable for row in await tiers.world.rows(tables.usage_events) if row.plan == "small")
    assert on_small >= 5
    assert await tiers.charged_by_meters() == on_small * SMALL + on_big * BIG
    assert await tiers.differences(fix=True) == []


async def test_a_renewal_that_was_voided_is_forgiven(tiers: Ledger) -> None:
    await tiers.use("runs", 150)
    await tiers.give_card("declines")
    await tiers.over_the_period_end()
    (invoice,) = await tiers.world.sandbox.all("/v1/invoices", status="open")
    await tiers.world.sandbox.call("POST", f"/v1/invoices/{invoice['id']}/void")
    await tiers.give_card()
    await tiers.advance(hours=1)
    await tiers.cancel(NOW)
    await tiers.advance(days=3)
    assert await tiers.charged_by_meters() == 0
    assert await tiers.differences(fix=True) == []
    await tiers.advance(days=3)
    assert await tiers.charged_by_meters() == 0


async def test_a_renewal_that_was_given_up_is_lost_and_not_charged_again(tiers: Ledger) -> None:
    await tiers.use("runs", 150)
    await tiers.give_card("declines")
    await tiers.over_the_period_end()
    (invoice,) = await tiers.world.sandbox.all("/v1/invoices", status="open")
    await tiers.world.sandbox.call("POST", f"/v1/invoices/{invoice['id']}/mark_uncollectible")
    await tiers.cancel(NOW)
    await tiers.advance(days=3)
    assert await tiers.differences(fix=True) == []
    assert await tiers.charged_by_meters() == 50 * SMALL


async def test_a_draft_that_an_unpaid_subscription_left_is_a_finding_until_it_is_final(ledger: Ledger) -> None:
    await ledger.sell(TIERS)
    await ledger.world.sandbox.control("POST", "dunning", {"ends": "unpaid"})
    await ledger.buy(plan="small")
    await ledger.over_the_period_end()
    await ledger.use("runs", 104)
    await ledger.give_card("declines")
    await ledger.over_the_period_end()
    await ledger.advance(days=33)
    assert (await ledger.at_stripe())[0]["status"] == "unpaid"
    found = await ledger.differences()
    left = await drafts(ledger)
    assert left
    assert [kind for kind, _ in found] == ["draft_stuck"] * len(left)
    await ledger.give_card()
    for draft in left:
        await ledger.world.sandbox.call("POST", f"/v1/invoices/{draft['id']}/finalize")
    await ledger.work()
    assert await ledger.differences() == []


async def test_a_draft_that_cannot_become_final_is_a_finding_with_its_reason(tiers: Ledger) -> None:
    await tiers.use("runs", 110)
    await tiers.world.sandbox.control("POST", "drafts", {"fails": True})
    await tiers.over_the_period_end()
    await tiers.advance(days=3)
    ((kind, detail),) = await tiers.differences(fix=True)
    assert kind == "draft_stuck"
    assert "customer_tax_location_invalid" in detail
    await tiers.world.sandbox.control("POST", "drafts", {"fails": False})
    (draft,) = await drafts(tiers)
    await tiers.world.sandbox.call("POST", f"/v1/invoices/{draft['id']}/finalize")
    await tiers.work()
    assert await tiers.differences() == []
    assert await tiers.charged_by_meters() == 10 * SMALL
