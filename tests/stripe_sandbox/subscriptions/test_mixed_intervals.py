import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import Billing, amounts, billing_at

HOUR = 3600


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def _yearly(billing: Billing) -> tuple[stripe.Subscription, int, int]:
    """Subscribe to a yearly base with monthly usage; return it with the end of the month and of the year."""
    made = await billing.subscribe({"price": await billing.price(20000, "year")}, {"price": billing.offer.metered})
    year, month = (item.current_period_end for item in made.items.data)
    assert dt.datetime.fromtimestamp(month, dt.UTC).strftime("%m-%d") == "04-01"
    assert dt.datetime.fromtimestamp(year, dt.UTC).strftime("%Y-%m-%d") == "2028-03-01"
    return made, month, year


async def test_each_item_has_its_own_period_and_is_billed_at_its_end(billing: Billing) -> None:
    made, month, year = await _yearly(billing)
    assert [amounts(each) for each in await billing.invoices()] == [[(20000, 1)]]
    await billing.use(6)
    await billing.advance_to(month + 2 * HOUR)
    assert amounts((await billing.invoices())[-1]) == [(300, 6)]
    base, used = (await billing.subscription(made.id)).items.data
    assert (base.current_period_end, used.current_period_start) == (year, month)


async def test_the_period_end_of_a_cancellation_is_the_earliest_items(billing: Billing) -> None:
    made, month, year = await _yearly(billing)
    ending = await billing.api.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    assert (ending.cancel_at, ending.cancel_at_period_end) == (month, True)
    latest = await billing.api.subscriptions.update_async(made.id, {"cancel_at": "max_period_end"})
    assert latest.cancel_at == year
    await billing.api.subscriptions.update_async(made.id, {"cancel_at_period_end": True})
    await billing.use(6)
    await billing.advance_to(month + 2 * HOUR)
    assert (await billing.subscription(made.id)).status == "canceled"
    credit, used = amounts((await billing.invoices())[-1])
    assert used == (300, 6)
    assert -20000 * 335 / 366 - 1 <= credit[0] <= -20000 * 334 / 366 + 1


async def test_a_checkout_takes_prices_of_a_single_interval(billing: Billing) -> None:
    lines = [{"price": await billing.price(20000, "year"), "quantity": 1}, {"price": billing.offer.metered}]
    with pytest.raises(stripe.InvalidRequestError, match="same interval"):
        await billing.api.checkout.sessions.create_async(
            {"mode": "subscription", "success_url": "https://shop.example/done", "line_items": lines}
        )
