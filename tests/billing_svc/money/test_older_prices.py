"""Prices of an older catalog version: who has them keeps them, and the refusal of another names the way."""

import pytest

from billing_svc.subscriptions.catalog_moves import move_subscriptions
from tests.billing_svc import refusals
from tests.billing_svc.money import seats
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW


async def bought(ledger: Ledger, after: str) -> None:
    """Buy two seats of the first version, and publish another version."""
    await ledger.sell(seats.SEATS)
    await ledger.buy(plan="small", quantity=2)
    await ledger.sell(after)


@pytest.mark.parametrize("timing", [NOW, AT_PERIOD_END])
async def test_the_refusal_of_a_price_that_is_no_longer_sold_names_the_way(ledger: Ledger, timing: int) -> None:
    await bought(ledger, seats.RAISED)
    refused = await refusals.refused(ledger.change(timing, price="yearly"))
    assert refused.reason == "PRICE_ARCHIVED"
    assert "newest_catalog" in refused.message
    assert refused.metadata == {
        "plan": "small",
        "price": "yearly",
        "catalog_version": "2",
        "newest_catalog_version": "3",
    }
    changed = await ledger.change(timing, price="yearly", newest_catalog=True)
    if timing == AT_PERIOD_END:
        await ledger.until_period_end(hours=2)
    told = await ledger.told()
    assert (told.price, told.quantity, told.catalog_version) == ("yearly", 2, 3)
    assert changed.lines[-1].amount.amount == "180.00"
    assert (await ledger.check("runs", 1)).included == 30


async def test_more_seats_at_an_old_price_can_be_bought(ledger: Ledger) -> None:
    await bought(ledger, seats.RAISED)
    told = (await ledger.change(quantity=5)).subscription
    assert (told.quantity, told.catalog_version) == (5, 2)


async def test_a_price_that_has_not_changed_since_is_still_sold(ledger: Ledger) -> None:
    await ledger.sell(seats.SEATS)
    await ledger.buy(plan="small", price="yearly", quantity=2)
    await ledger.sell(seats.YEARLY_RAISED)
    told = (await ledger.change(price="monthly")).subscription
    assert (told.price, told.catalog_version) == ("monthly", 2)
    # And back: the yearly price of the sale is no longer sold.
    assert (await refusals.refused(ledger.change(price="yearly"))).reason == "PRICE_ARCHIVED"


async def test_the_same_price_of_the_newest_version_can_be_taken(ledger: Ledger) -> None:
    await bought(ledger, seats.RAISED)
    told = (await ledger.change(newest_catalog=True)).subscription
    assert (told.price, told.quantity, told.catalog_version) == ("monthly", 2, 3)
    assert (await refusals.refused(ledger.change(newest_catalog=True))).reason == "PLAN_UNCHANGED"


async def test_a_refused_move_names_the_way(ledger: Ledger) -> None:
    await bought(ledger, seats.RAISED)
    database, now = ledger.world.billing.transactions, ledger.world.billing.clock.now()
    (move,) = [move async for move in move_subscriptions.preview(database, now)]
    assert "newest_catalog" in move.refusal
