"""Quantity 0, which somebody can set at Stripe, means no seats: in the answer, in decisions and in changes."""

from collections.abc import Mapping
from typing import Any

import pytest

from billing_svc.catalog import loading
from billing_svc.platform import errors
from billing_svc.subscriptions.changes import rules
from tests.billing_svc import refusals
from tests.billing_svc.money import seats
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions import dashboard
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW


async def emptied(world: World, subscription_id: str) -> Mapping[str, Any]:
    data = await world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}")
    for item in data["items"]["data"]:
        item["quantity"] = 0
    return data


async def test_it_means_no_seats_everywhere(world: World) -> None:
    ledger = Ledger(world)
    await ledger.sell(seats.SEATS)
    subscription_id = await ledger.buy(plan="small", quantity=3)
    told = await dashboard.apply(world, await emptied(world, subscription_id))
    assert (told.plan, told.quantity) == ("small", 0)
    answer = await ledger.check("runs", 1)
    assert (answer.included, answer.decision) == (0, 2)
    # Nothing is named, so nothing changes, and no seat is bought.
    for timing in (NOW, AT_PERIOD_END):
        assert (await refusals.refused(ledger.change(timing))).reason == "PLAN_UNCHANGED"
    refused = await refusals.refused(ledger.change(plan="big"))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ("quantity",))
    assert (await ledger.change(plan="big", quantity=2)).subscription.quantity == 2


@pytest.mark.parametrize(("plan", "price", "quantity"), [("", "", 0), ("small", "", 0), ("small", "monthly", 0)])
def test_a_quantity_that_is_left_out_stays_while_plan_and_price_stay(plan: str, price: str, quantity: int) -> None:
    catalog = loading.load_text(seats.SEATS, "seats.yaml")
    held = rules.Held("small", "monthly", 0, 1, catalog)
    order = rules.ChangeOrder("org_1", "r", plan, price, None, at_period_end=False, proration_at=None)
    choice = rules.choose(order, held, catalog, 1)
    assert (choice.quantity, choice.is_of(held)) == (quantity, True)


def test_another_price_needs_the_number_of_seats() -> None:
    catalog = loading.load_text(seats.SEATS, "seats.yaml")
    held = rules.Held("small", "monthly", 0, 1, catalog)
    order = rules.ChangeOrder("org_1", "r", "", "yearly", None, at_period_end=False, proration_at=None)
    with pytest.raises(errors.InvalidRequest, match="name how many"):
        rules.choose(order, held, catalog, 1)


async def test_of_a_plan_that_is_not_sold_by_the_seat_nothing_is_bought_either(tiers: Ledger) -> None:
    (subscription,) = await tiers.at_stripe()
    for item in subscription["items"]["data"]:
        if "quantity" in item:
            item["quantity"] = 0
    told = await dashboard.apply(tiers.world, subscription)
    assert told.quantity == 0
    assert (await refusals.refused(tiers.change())).reason == "PLAN_UNCHANGED"
    assert (await tiers.check("runs", 1)).included == 100
