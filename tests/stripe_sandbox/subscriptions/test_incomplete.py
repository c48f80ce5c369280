"""How a subscription begins whose first invoice is not paid at once."""

import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import Billing, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

HOUR = 3600


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 9, 0, tzinfo=dt.UTC)) as made:
        yield made


@pytest.mark.parametrize(
    ("card", "behavior"),
    [("works", "default_incomplete"), ("declines", "allow_incomplete"), ("none", "allow_incomplete")],
)
async def test_it_is_incomplete_until_it_is_paid(billing: Billing, card: str, behavior: str) -> None:
    await billing.card(card)
    made = await billing.subscribe(payment_behavior=behavior)
    (invoice,) = await billing.invoices()
    assert (made.status, invoice.status, invoice.id) == ("incomplete", "open", made.latest_invoice)
    created = (await billing.api.events.list_async({"type": "customer.subscription.created"})).data
    assert [event.data.object.status for event in created] == ["incomplete"]
    await billing.card("works")
    await billing.advance(22 * HOUR)
    assert (await billing.subscription(made.id)).status == "incomplete", "nothing is charged by itself"
    await billing.api.invoices.pay_async(invoice.id)
    assert (await billing.subscription(made.id)).status == "active"


async def test_it_expires_after_23_hours(billing: Billing) -> None:
    made = await billing.subscribe(payment_behavior="default_incomplete")
    await billing.advance(23 * HOUR - 1)
    assert (await billing.subscription(made.id)).status == "incomplete"
    await billing.advance(1)
    assert (await billing.subscription(made.id)).status == "incomplete_expired"
    assert [one.status for one in await billing.invoices()] == ["void"]


async def test_without_an_amount_it_is_active_at_once(billing: Billing) -> None:
    await billing.card("none")
    made = await billing.subscribe({"price": billing.offer.metered}, payment_behavior="default_incomplete")
    assert (made.status, await billing.invoices()) == ("active", [])


@pytest.mark.parametrize(
    ("card", "status", "code"), [("declines", 402, "card_declined"), ("none", 400, "resource_missing")]
)
async def test_it_does_not_begin_where_the_request_says_so(billing: Billing, card: str, status: int, code: str) -> None:
    await billing.card(card)
    with pytest.raises(stripe.StripeError) as caught:
        await billing.subscribe(payment_behavior="error_if_incomplete")
    assert (caught.value.http_status, caught.value.code) == (status, code)
    assert (await billing.api.subscriptions.list_async({"status": "all"})).data == []
    assert await billing.invoices() == []


async def test_checkout_s_subscription_is_incomplete_before_it_is_active(billing: Billing) -> None:
    session = await billing.api.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "customer": billing.customer,
            "success_url": "https://shop.example/done",
            "line_items": [{"price": billing.offer.base, "quantity": 1}],
        }
    )
    await billing.sandbox.http.post(f"{session.url}/pay")
    events = (await billing.api.events.list_async({"limit": 100})).data[::-1]
    told = [(event.type, event.data.object.status) for event in events if "subscription" in event.type]
    assert told == [("customer.subscription.created", "incomplete"), ("customer.subscription.updated", "active")]
