import time
from decimal import Decimal

import pytest
import stripe

from tests.stripe_sandbox.conftest import Offer, Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


async def test_a_customer_is_made_changed_found_and_deleted(sandbox: Sandbox) -> None:
    customers = sandbox.stripe.v1.customers
    made = await customers.create_async({"email": "a@example.com", "metadata": {"account": "acme", "x": "1"}})
    await customers.update_async(made.id, {"name": "Acme", "metadata": {"x": ""}})
    found = await customers.retrieve_async(made.id)
    assert found.metadata
    assert (found.email, found.name, found.metadata.to_dict()) == ("a@example.com", "Acme", {"account": "acme"})
    assert [each.id for each in (await customers.list_async({"email": "a@example.com"})).data] == [made.id]
    await customers.delete_async(made.id)
    assert (await customers.retrieve_async(made.id)).deleted
    assert (await customers.list_async({})).data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        await customers.update_async(made.id, {"name": "B"})


async def test_a_product_takes_a_chosen_id_once(sandbox: Sandbox) -> None:
    products = sandbox.stripe.v1.products
    await products.create_async({"id": "plan_pro", "name": "Pro"})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await products.create_async({"id": "plan_pro", "name": "Pro"})
    assert (caught.value.code, caught.value.param) == ("resource_already_exists", "id")
    await products.update_async("plan_pro", {"active": False})
    assert (await products.list_async({"active": True})).data == []
    assert [each.id for each in (await products.list_async({"ids": ["plan_pro"]})).data] == ["plan_pro"]


async def test_a_lookup_key_belongs_to_one_price_and_can_be_transferred(sandbox: Sandbox, offer: Offer) -> None:
    prices = sandbox.stripe.v1.prices
    again: stripe.params.PriceCreateParams = {
        "product": offer.product,
        "currency": "usd",
        "unit_amount": 2500,
        "recurring": {"interval": "month"},
        "lookup_key": "nyqst_pro_monthly",
    }
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await prices.create_async(again)
    assert caught.value.param == "lookup_key"
    newer = await prices.create_async({**again, "transfer_lookup_key": True})
    await prices.update_async(offer.base, {"active": False})
    by_key = await prices.list_async({"lookup_keys": ["nyqst_pro_monthly", "other"]})
    assert [each.id for each in by_key.data] == [newer.id]
    older = await prices.retrieve_async(offer.base)
    assert (older.lookup_key, older.active) == (None, False)


async def test_a_price_of_a_fraction_is_exact(sandbox: Sandbox, offer: Offer) -> None:
    price = await sandbox.stripe.v1.prices.create_async(
        {
            "product": offer.product,
            "currency": "usd",
            "unit_amount_decimal": Decimal("0.05"),
            "recurring": {"interval": "month", "usage_type": "metered", "meter": offer.meter},
        }
    )
    assert (price.unit_amount, price.unit_amount_decimal) == (None, Decimal("0.05"))


async def test_an_event_name_belongs_to_one_active_meter(sandbox: Sandbox, offer: Offer) -> None:
    meters = sandbox.stripe.v1.billing.meters
    again: stripe.params.billing.MeterCreateParams = {
        "display_name": "Runs",
        "event_name": "nyqst_pro_runs",
        "default_aggregation": {"formula": "sum"},
    }
    with pytest.raises(stripe.InvalidRequestError):
        await meters.create_async(again)
    await meters.deactivate_async(offer.meter)
    other = await meters.create_async(again)
    with pytest.raises(stripe.InvalidRequestError):
        await meters.reactivate_async(offer.meter)
    assert [each.id for each in (await meters.list_async({"status": "active"})).data] == [other.id]
    assert (await meters.update_async(other.id, {"display_name": "Run"})).display_name == "Run"


async def test_a_meter_event_is_taken_once_for_each_identifier(sandbox: Sandbox, offer: Offer) -> None:
    del offer
    customer = await sandbox.stripe.v1.customers.create_async({})
    event: stripe.params.billing.MeterEventCreateParams = {
        "event_name": "nyqst_pro_runs",
        "identifier": "report-1",
        "payload": {"stripe_customer_id": customer.id, "value": "-3"},
    }
    events = sandbox.stripe.v1.billing.meter_events
    assert (await events.create_async(event)).identifier == "report-1"
    with pytest.raises(stripe.InvalidRequestError, match="An event already exists with identifier report-1"):
        await events.create_async(event)


@pytest.mark.parametrize("seconds", [-36 * 24 * 3600, 10 * 60])
async def test_a_meter_event_from_too_far_away_is_refused(sandbox: Sandbox, seconds: int) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await sandbox.stripe.v1.billing.meter_events.create_async(
            {
                "event_name": "e",
                "payload": {"stripe_customer_id": "cus_1", "value": "1"},
                "timestamp": int(time.time()) + seconds,
            }
        )
    assert caught.value.param == "timestamp"


async def test_a_list_is_walked_page_by_page_newest_first(sandbox: Sandbox) -> None:
    customers = sandbox.stripe.v1.customers
    made = [(await customers.create_async({"name": str(number)})).id for number in range(5)]
    page = await customers.list_async({"limit": 2})
    assert (page.has_more, [each.id for each in page.data]) == (True, made[:2:-1])
    assert [each.id async for each in page.auto_paging_iter()] == made[::-1]
    back = await customers.list_async({"limit": 2, "ending_before": made[0]})
    assert [each.id for each in back.data] == [made[2], made[1]]


async def test_what_is_expanded_is_shown_in_full(sandbox: Sandbox, offer: Offer) -> None:
    prices = sandbox.stripe.v1.prices
    price = await prices.retrieve_async(offer.base, {"expand": ["product"]})
    assert isinstance(price.product, stripe.Product)
    page = await prices.list_async({"expand": ["data.product"]})
    assert all(isinstance(each.product, stripe.Product) for each in page.data)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        await prices.retrieve_async(offer.base, {"expand": ["nothing"]})
