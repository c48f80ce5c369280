import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, billing_at


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def test_an_endpoint_is_limited_by_the_second_and_others_are_not(billing: Billing) -> None:
    await billing.control("limits", {"per_second": 1})
    await billing.api.customers.list_async()
    await billing.api.products.list_async()
    with pytest.raises(stripe.RateLimitError):
        await billing.api.customers.list_async()
    await billing.control("limits", {})
    for _ in range(3):
        await billing.api.customers.list_async()


async def test_a_subscription_makes_ten_invoices_a_minute_and_twenty_a_day(billing: Billing) -> None:
    await billing.control("limits", {"invoices": True})
    made = await billing.subscribe({"price": billing.offer.base})
    item = made.items.data[0].id

    async def change(quantity: int) -> None:
        await billing.api.subscriptions.update_async(
            made.id, {"items": [{"id": item, "quantity": quantity}], "proration_behavior": "always_invoice"}
        )

    for quantity in range(2, 11):
        await change(quantity)
    with pytest.raises(stripe.RateLimitError):
        await change(11)
    await billing.advance(61)
    for quantity in range(11, 21):
        await change(quantity)
    await billing.advance(61)
    with pytest.raises(stripe.RateLimitError):
        await change(21)
    await billing.advance(DAY)
    await change(21)
    assert len(await billing.invoices()) == 21
