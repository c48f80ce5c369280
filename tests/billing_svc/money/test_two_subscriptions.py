"""Two live subscriptions with plans of ours on one customer: usage is charged once, and a person decides which ends."""

from datetime import timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.platform.findings import store as findings_store
from billing_svc.stripe import subscriptions
from billing_svc.subscriptions.records import apply_subscription, end_duplicate
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.subscriptions import dashboard

ITEMS = ("tiers_small_monthly", "tiers_small_runs", "tiers_small_seats")


async def second(tiers: Ledger, *, applied: bool = True) -> str:
    """Make a second subscription of the same plan in the dashboard, a minute later."""
    await tiers.give_card()  # the customer's default: Checkout's card is on the first subscription alone
    await tiers.advance(minutes=1)
    prices = [await dashboard.price_of(tiers.world, key) for key in ITEMS]
    subscription_id = await dashboard.subscribe(tiers.world, *prices)
    if applied:
        await tiers.work()
    return subscription_id


async def findings(tiers: Ledger) -> dict[str, findings_store.OpenFinding]:
    found = await tiers.world.billing.transactions.read(findings_store.list_open)
    return {one.kind: one for one in found}


async def end(tiers: Ledger, subscription_id: str) -> str:
    origin, now = audit_store.Origin("operator:test"), tiers.world.billing.clock.now()
    return await tiers.world.billing.transactions.run(
        lambda conn: end_duplicate.end(conn, "org_1", subscription_id, origin, now)
    )


async def test_the_plan_is_that_of_the_later_and_neither_is_ended(tiers: Ledger) -> None:
    later = await second(tiers)
    assert (await tiers.told()).subscription_id == later
    assert [one["status"] for one in await tiers.at_stripe()] == ["active", "active"]
    assert "two_subscriptions" in [kind for kind, _ in await tiers.differences()]
    finding = (await findings(tiers))["two_subscriptions"]
    assert later in finding.detail
    assert "end-subscription" in finding.settled_by


async def test_usage_is_charged_once_on_the_subscription_that_began_first(tiers: Ledger) -> None:
    (first,) = await tiers.at_stripe()
    later = await second(tiers)
    await tiers.use("runs", 103)
    await tiers.over_the_period_end()
    assert await tiers.meter_quantities() == {}
    assert await tiers.charged() == 4 * Decimal("10.00") + 3 * Decimal("0.10")
    lines = {
        invoice["parent"]["subscription_details"]["subscription"]: len(invoice["lines"]["data"])
        for invoice in await tiers.invoices()
    }
    items = [item for item in await tiers.world.sandbox.all("/v1/invoiceitems") if item["amount"] == 30]
    assert [item["parent"]["subscription_details"]["subscription"] for item in items] == [first["id"]]
    assert set(lines) == {first["id"], later}
    assert [kind for kind, _ in await tiers.differences()] == ["two_subscriptions"]


async def test_what_was_sent_before_it_was_known_is_money_to_credit(tiers: Ledger) -> None:
    later = await second(tiers, applied=False)
    await tiers.world.advance(timedelta(seconds=2), deliver=False)
    await tiers.use("runs", 105)
    await tiers.report()
    assert "usage_billed_twice" not in await findings(tiers)
    await tiers.work()
    finding = (await findings(tiers))["usage_billed_twice"]
    assert (finding.object_id, finding.amount, finding.currency) == ("tiers_small_runs", 50, "usd")
    assert later
    await tiers.over_the_period_end()
    # As Stripe does: both invoices charge the five units.
    assert await tiers.charged() == 4 * Decimal("10.00") + 2 * 5 * Decimal("0.10")
    assert (await findings(tiers))["usage_billed_twice"].amount == 50


async def test_ended_in_time_neither_usage_nor_price_is_charged_twice(tiers: Ledger) -> None:
    (first,) = await tiers.at_stripe()
    await second(tiers, applied=False)
    await tiers.world.advance(timedelta(seconds=2), deliver=False)
    await tiers.use("runs", 105)
    await tiers.report()
    await tiers.work()
    assert await end(tiers, first["id"]) == ""
    await tiers.work()
    assert await findings(tiers) == {}
    assert [one["status"] for one in await tiers.at_stripe()] == ["canceled", "active"]
    await tiers.over_the_period_end()
    assert await tiers.charged_by_meters() == 5 * Decimal("0.10")
    assert await tiers.differences() == []
    actions = await tiers.world.rows(tables.audit_log, tables.audit_log.c.action == "subscription.ended_as_duplicate")
    assert len(actions) == 1


async def test_what_only_the_ended_subscription_bills_is_on_its_last_invoice(tiers: Ledger) -> None:
    """The second subscription was made without the plan's metered items, so it charges no usage."""
    (first,) = await tiers.at_stripe()
    await tiers.use("runs", 103)
    await tiers.report()
    await tiers.give_card()
    await tiers.advance(minutes=1)
    await dashboard.subscribe(tiers.world, await dashboard.price_of(tiers.world, ITEMS[0]))
    await tiers.work()
    assert await end(tiers, first["id"]) == ""
    await tiers.work()
    assert [one["status"] for one in await tiers.at_stripe()] == ["canceled", "active"]
    await tiers.over_the_period_end()
    assert await tiers.meter_quantities() == {"tiers_small_runs": 3}
    assert await tiers.charged_by_meters() == 3 * Decimal("0.10")


@pytest.mark.parametrize("items", [ITEMS, ITEMS[:1], ("tiers_big_monthly", "tiers_big_runs", "tiers_big_seats")])
async def test_usage_is_not_forgiven_with_the_invoices_of_a_paused_subscription(
    tiers: Ledger, items: tuple[str, ...]
) -> None:
    """Support pauses the first subscription for good, and makes another."""
    (first,) = await tiers.at_stripe()
    await tiers.use("runs", 90)
    await tiers.give_card()  # the customer's default: Checkout's card is on the first subscription alone
    await tiers.advance(minutes=1)
    prices = [await dashboard.price_of(tiers.world, key) for key in items]
    later = await dashboard.subscribe(tiers.world, *prices)
    await tiers.world.sandbox.call("POST", f"/v1/subscriptions/{first['id']}", **{"pause_collection[behavior]": "void"})
    await tiers.work()
    billable = (await tiers.use("runs", 300)).billable
    assert billable > 0
    if items[0].startswith("tiers_big"):
        price = await dashboard.price_of(tiers.world, "tiers_big_runs")
        await dashboard.remove_item(tiers.world, later, price)
        await tiers.work()
    await tiers.over_the_period_end()
    items_made = [one for one in await tiers.world.sandbox.all("/v1/invoiceitems") if one["amount"] > 0]
    statuses = {one["id"]: one["status"] for one in await tiers.world.sandbox.all("/v1/invoices")}
    assert [statuses[one["invoice"]] for one in items_made] == ["paid"]


async def test_the_only_subscription_is_not_ended_as_a_duplicate(tiers: Ledger) -> None:
    (first,) = await tiers.at_stripe()
    assert "CancelSubscription" in await end(tiers, first["id"])
    assert "no live plan subscription" in await end(tiers, "sub_unknown")
    assert [one["status"] for one in await tiers.at_stripe()] == ["active"]


async def test_after_one_has_ended_usage_goes_to_the_meter_again(tiers: Ledger) -> None:
    later = await second(tiers)
    await tiers.world.sandbox.call("DELETE", f"/v1/subscriptions/{later}")
    await tiers.work()
    assert await findings(tiers) == {}
    await tiers.use("runs", 104)
    await tiers.over_the_period_end()
    assert await tiers.meter_quantities() == {"tiers_small_runs": 4}
    assert await tiers.differences() == []


async def test_the_end_of_a_subscription_whose_items_cannot_be_read_settles_its_findings(tiers: Ledger) -> None:
    later = await second(tiers)
    await dashboard.remove_item(tiers.world, later, await dashboard.price_of(tiers.world, "tiers_small_seats"))
    await tiers.work()
    assert {"two_subscriptions", "items_differ"} <= set(await findings(tiers))
    ended = await tiers.world.sandbox.call("DELETE", f"/v1/subscriptions/{later}")
    origin, now = audit_store.Origin("stripe:evt"), tiers.world.billing.clock.now()
    await tiers.world.billing.transactions.run(
        lambda conn: apply_subscription.apply_standing(conn, tiers.catalogs, subscriptions.standing(ended), origin, now)
    )
    assert await findings(tiers) == {}


async def test_a_checkout_is_not_ended_for_what_was_made_by_hand(tiers: Ledger) -> None:
    """A subscription in the dashboard may be dated back before the checkout."""
    later = await second(tiers)
    rows = tables.subscriptions
    await tiers.world.execute(
        sa.update(rows)
        .where(rows.c.subscription_id == later)
        .values(effective_from=rows.c.effective_from - sa.text("interval '1 day'"))
    )
    (first, *_) = await tiers.at_stripe()
    await tiers.world.sandbox.call("POST", f"/v1/subscriptions/{first['id']}", **{"metadata[touched]": "1"})
    await tiers.work()
    assert [one["status"] for one in await tiers.at_stripe()] == ["active", "active"]
    assert not any(row.superfluous for row in await tiers.world.rows(rows))
