"""Lists inside objects are pages: ten items of a subscription, ten lines of an invoice, the others by their route."""

import pytest
import stripe

from tests.stripe_sandbox.conftest import Offer, Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


async def prices(sandbox: Sandbox, offer: Offer, count: int) -> list[str]:
    made = [
        await sandbox.stripe.v1.prices.create_async(
            {
                "product": offer.product,
                "currency": "usd",
                "unit_amount": 100 + number,
                "recurring": {"interval": "month"},
            }
        )
        for number in range(count)
    ]
    return [price.id for price in made]


async def subscribed(sandbox: Sandbox, items: list[str]) -> stripe.Subscription:
    customer = await sandbox.stripe.v1.customers.create_async({})
    return await sandbox.stripe.v1.subscriptions.create_async(
        {
            "customer": customer.id,
            "items": [{"price": price} for price in items],
            "payment_behavior": "default_incomplete",
        }
    )


async def test_the_items_of_a_subscription(sandbox: Sandbox, offer: Offer) -> None:
    sold = await prices(sandbox, offer, 13)
    made = await subscribed(sandbox, sold)
    assert ([item.price.id for item in made.items.data], made.items.has_more) == (sold[:10], True)
    (event,) = (await sandbox.stripe.v1.events.list_async({"type": "customer.subscription.created"})).data
    assert len(event.data.object["items"]["data"]) == 10
    (listed,) = (await sandbox.stripe.v1.subscriptions.list_async({"status": "all"})).data
    assert listed.items.has_more
    pages = await sandbox.stripe.v1.subscription_items.list_async({"subscription": made.id, "limit": 6})
    assert [item.price.id async for item in pages.auto_paging_iter()] == sold


async def test_few_items_are_one_page(sandbox: Sandbox, offer: Offer) -> None:
    made = await subscribed(sandbox, await prices(sandbox, offer, 10))
    assert (len(made.items.data), made.items.has_more) == (10, False)


async def test_the_lines_of_an_invoice(sandbox: Sandbox, offer: Offer) -> None:
    sold = await prices(sandbox, offer, 13)
    made = await subscribed(sandbox, sold)
    invoice = await sandbox.stripe.v1.invoices.retrieve_async(str(made.latest_invoice))
    assert (len(invoice.lines.data), invoice.lines.has_more) == (10, True)
    assert invoice.total == sum(range(100, 113)), "all lines count, also those of later pages"
    rest = await sandbox.stripe.v1.invoices.line_items.list_async(
        invoice.id, {"limit": 100, "starting_after": invoice.lines.data[-1].id}
    )
    assert ([line.amount for line in rest.data], rest.has_more) == ([110, 111, 112], False)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await sandbox.stripe.v1.invoices.line_items.list_async(invoice.id, {"starting_after": "il_other"})
    assert caught.value.param == "starting_after"
