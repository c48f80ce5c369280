import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, amounts, billing_at


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def test_an_item_at_a_handmade_price_of_the_product_replaces_the_base_item(billing: Billing) -> None:
    made = await billing.subscribe()
    custom = await billing.price(1500)
    base = next(item for item in made["items"].data if item.price.id == billing.offer.base)
    added = await billing.api.subscription_items.create_async({"subscription": made.id, "price": custom, "quantity": 2})
    assert (added.price.id, added.quantity, added.subscription) == (custom, 2, made.id)
    gone = await billing.api.subscription_items.delete_async(base.id, {"proration_behavior": "none"})
    assert (gone.id, gone.deleted) == (base.id, True)
    listed = await billing.api.subscription_items.list_async({"subscription": made.id})
    assert [item.price.id for item in listed.data] == [billing.offer.metered, custom]
    await billing.advance(32 * DAY)
    # 30 for the rest of the first month, added a second or so after its beginning, and 30 for the next month.
    assert [line[0] for line in amounts((await billing.invoices())[-1])][-1] == 3000
    types = await billing.types("customer.subscription.updated")
    assert len(types) >= 2


async def test_an_item_is_changed_and_read_alone(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base, "quantity": 3})
    [item] = made["items"].data
    changed = await billing.api.subscription_items.update_async(
        item.id, {"quantity": 5, "metadata": {"seat": "yes"}, "proration_behavior": "none"}
    )
    assert (changed.quantity, changed.metadata.to_dict()) == (5, {"seat": "yes"})
    found = await billing.api.subscription_items.retrieve_async(item.id)
    assert (found.quantity, found.price.id) == (5, billing.offer.base)
    with pytest.raises(stripe.InvalidRequestError, match="at least one item"):
        await billing.api.subscription_items.delete_async(item.id)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription_item"):
        await billing.api.subscription_items.retrieve_async("si_none")


async def test_quantity_zero_costs_nothing_and_keeps_the_subscription_active(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base, "quantity": 0})
    assert (made.status, made["items"].data[0].quantity) == ("active", 0)
    [first] = await billing.invoices()
    assert (first.total, first.status) == (0, "paid")
    await billing.advance(32 * DAY)
    assert [invoice.total for invoice in await billing.invoices()] == [0, 0]
