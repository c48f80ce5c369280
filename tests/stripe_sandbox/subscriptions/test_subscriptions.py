import time

import pytest
import stripe

from tests.stripe_sandbox.conftest import Offer, Sandbox, activates

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


@pytest.fixture
async def subscription(sandbox: Sandbox, offer: Offer) -> stripe.Subscription:
    session = await sandbox.stripe.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://shop.example/done",
            "line_items": [{"price": offer.base, "quantity": 2}, {"price": offer.metered}],
        }
    )
    paid = await sandbox.http.post(f"{session.url}/pay", headers={"Accept": "application/json"})
    return await sandbox.stripe.v1.subscriptions.retrieve_async(paid.json()["subscription"])


async def types(sandbox: Sandbox) -> list[str]:
    """Return the types of the changes and ends, without the payment that made the subscription active."""
    events = await sandbox.stripe.v1.events.list_async(
        {"types": ["customer.subscription.updated", "customer.subscription.deleted"]}
    )
    return [each.type for each in events.data if not activates(each)]


async def test_an_end_at_the_periods_end_can_be_taken_back(sandbox: Sandbox, subscription: stripe.Subscription) -> None:
    subscriptions = sandbox.stripe.v1.subscriptions
    ending = await subscriptions.update_async(subscription.id, {"cancel_at_period_end": True})
    assert (ending.status, ending.cancel_at_period_end) == ("active", True)
    assert ending.cancel_at == ending.items.data[0].current_period_end
    assert ending.canceled_at
    resumed = await subscriptions.update_async(subscription.id, {"cancel_at_period_end": False})
    assert (resumed.cancel_at_period_end, resumed.cancel_at, resumed.canceled_at) == (False, None, None)
    assert await types(sandbox) == ["customer.subscription.updated"] * 2
    await subscriptions.update_async(subscription.id, {"cancel_at_period_end": False})
    assert len(await types(sandbox)) == 2, "nothing changed, so nothing happened"


async def test_ending_at_a_time(sandbox: Sandbox, subscription: stripe.Subscription) -> None:
    subscriptions = sandbox.stripe.v1.subscriptions
    at = int(time.time()) + 86400
    ending = await subscriptions.update_async(subscription.id, {"cancel_at": at})
    assert (ending.cancel_at, ending.cancel_at_period_end) == (at, False)
    assert (await subscriptions.update_async(subscription.id, {"cancel_at": ""})).cancel_at is None
    with pytest.raises(stripe.InvalidRequestError):
        await subscriptions.update_async(subscription.id, {"cancel_at": 1})


async def test_cancelling_now_is_final(sandbox: Sandbox, subscription: stripe.Subscription) -> None:
    subscriptions = sandbox.stripe.v1.subscriptions
    over = await subscriptions.cancel_async(subscription.id, {"invoice_now": True, "prorate": True})
    assert over.status == "canceled"
    assert over.ended_at
    assert await types(sandbox) == ["customer.subscription.deleted"]
    assert (await subscriptions.list_async({})).data == []
    assert len((await subscriptions.list_async({"status": "all"})).data) == 1
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await subscriptions.cancel_async(subscription.id)
    assert caught.value.http_status == 404
    with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
        await subscriptions.update_async(subscription.id, {"cancel_at_period_end": True})


async def test_price_and_quantity_of_a_subscription_can_be_changed(
    sandbox: Sandbox, offer: Offer, subscription: stripe.Subscription
) -> None:
    bigger = await sandbox.stripe.v1.prices.create_async(
        {"product": offer.product, "currency": "usd", "unit_amount": 9900, "recurring": {"interval": "month"}}
    )
    base, metered = subscription.items.data
    changed = await sandbox.stripe.v1.subscriptions.update_async(
        subscription.id,
        {
            "items": [{"id": base.id, "price": bigger.id, "quantity": 5}, {"id": metered.id, "deleted": True}],
            "proration_behavior": "create_prorations",
        },
    )
    (item,) = changed.items.data
    assert (item.id, item.price.id, item.quantity) == (base.id, bigger.id, 5)
    assert item.current_period_end == base.current_period_end
    (event, _) = (await sandbox.stripe.v1.events.list_async({"type": "customer.subscription.updated"})).data
    previous = event.data.previous_attributes
    assert previous
    assert previous["items"]["data"][0]["price"]["id"] == offer.base


async def test_a_price_of_another_interval_begins_a_new_period(
    sandbox: Sandbox, offer: Offer, subscription: stripe.Subscription
) -> None:
    yearly = await sandbox.stripe.v1.prices.create_async(
        {"product": offer.product, "currency": "usd", "unit_amount": 20000, "recurring": {"interval": "year"}}
    )
    base, metered = subscription.items.data
    changed = await sandbox.stripe.v1.subscriptions.update_async(
        subscription.id, {"items": [{"id": base.id, "price": yearly.id}, {"id": metered.id, "deleted": True}]}
    )
    (item,) = changed.items.data
    assert item.current_period_end - item.current_period_start >= 365 * 86400
    assert changed.billing_cycle_anchor == item.current_period_start


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"id": "si_other", "quantity": 2}], "items[0][id]"),
        ([{"quantity": 2}], "items[0][price]"),
        ([{"id": "METERED", "quantity": 2}], "items[0][quantity]"),
        ([{"price": "BASE"}], "items"),
        ([{"id": "FIRST", "deleted": True}, {"id": "METERED", "deleted": True}], "items"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(
    sandbox: Sandbox,
    offer: Offer,
    subscription: stripe.Subscription,
    items: list[dict[str, object]],
    param: str,
) -> None:
    first, metered = subscription.items.data
    names: dict[object, object] = {"METERED": metered.id, "FIRST": first.id, "BASE": offer.base}
    given = [{key: names.get(value, value) for key, value in item.items()} for item in items]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await sandbox.stripe.v1.subscriptions.update_async(subscription.id, {"items": given})  # type: ignore[arg-type] # wrong on purpose
    assert caught.value.param == param
    assert await types(sandbox) == []
