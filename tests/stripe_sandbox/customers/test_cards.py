"""Whose card pays: Checkout's card is the subscription's, and another invoice finds none unless it names one."""

import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.billing import Billing, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 9, 0, tzinfo=dt.UTC)) as made:
        await made.card("none")
        yield made


async def bought(billing: Billing, **fields: str) -> stripe.Subscription:
    """Buy the offer in Checkout, and return the subscription."""
    session = await billing.api.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "customer": billing.customer,
            "success_url": "https://shop.example/done",
            "line_items": [{"price": billing.offer.base, "quantity": 1}, {"price": billing.offer.metered}],
        }
    )
    answer = await billing.sandbox.http.post(f"{session.url}/pay", data=fields, headers={"Accept": "application/json"})
    return await billing.subscription(answer.json()["subscription"])


async def final(billing: Billing, **params: object) -> stripe.Invoice:
    """Invoice an item of 700 with `params`, and return the invoice after Stripe finalised and charged it."""
    draft = await billing.api.invoices.create_async({"customer": billing.customer, "auto_advance": True, **params})
    await billing.api.invoice_items.create_async(
        {"customer": billing.customer, "amount": 700, "currency": "usd", "invoice": draft.id}
    )
    await billing.advance(3600)
    return next(one for one in await billing.invoices() if one.id == draft.id)


async def test_checkout_s_card_is_the_subscription_s_and_not_the_customer_s(billing: Billing) -> None:
    subscription = await bought(billing)
    card = await billing.api.payment_methods.retrieve_async(str(subscription.default_payment_method))
    customer = await billing.api.customers.retrieve_async(billing.customer)
    assert (card.customer, customer.invoice_settings.default_payment_method) == (billing.customer, None)
    await billing.advance_to(subscription.items.data[0].current_period_end + 3600)
    assert [one.status for one in await billing.invoices()] == ["paid", "paid"], "its own invoices are paid"


async def test_another_invoice_finds_no_card_unless_it_names_one(billing: Billing) -> None:
    subscription = await bought(billing)
    alone = await final(billing)
    assert (alone.status, alone.attempt_count) == ("open", 1)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await billing.api.invoices.pay_async(alone.id)
    assert (caught.value.http_status, caught.value.code) == (400, "resource_missing")
    naming = await final(billing, default_payment_method=subscription.default_payment_method)
    assert naming.status == "paid"
    await billing.card("works")
    assert (await final(billing)).status == "paid", "the customer's default card"
    await billing.advance(3 * 24 * 3600)
    assert (await billing.api.invoices.retrieve_async(alone.id)).status == "paid", "the next attempt finds it"


async def test_an_invoice_names_only_a_card_of_its_customer(billing: Billing) -> None:
    other = await billing.api.customers.create_async({})
    card = await billing.api.payment_methods.attach_async("pm_card_visa", {"customer": other.id})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await final(billing, default_payment_method=card.id)
    assert caught.value.param == "default_payment_method"


async def test_a_card_for_one_payment_fails_later_and_stays_the_subscription_s(billing: Billing) -> None:
    subscription = await bought(billing, card="works_once")
    assert (
        await billing.api.customers.retrieve_async(billing.customer)
    ).invoice_settings.default_payment_method is None
    await billing.advance_to(subscription.items.data[0].current_period_end + 3600)
    assert (await billing.subscription(subscription.id)).status == "past_due"


async def test_a_new_card_of_the_portal_replaces_the_subscription_s(billing: Billing) -> None:
    before = await bought(billing)
    await billing.card("declines")
    after = await billing.subscription(before.id)
    customer = await billing.api.customers.retrieve_async(billing.customer)
    assert after.default_payment_method == customer.invoice_settings.default_payment_method
    assert after.default_payment_method != before.default_payment_method


async def test_items_of_a_subscription_are_on_its_invoices_only(billing: Billing) -> None:
    one, other = await bought(billing), await bought(billing)

    async def item(amount: int, **more: Any) -> None:  # noqa: ANN401 - parameters
        await billing.api.invoice_items.create_async(
            {"customer": billing.customer, "amount": amount, "currency": "usd", **more}
        )

    await item(100, subscription=one.id)
    await item(200, subscription=other.id)
    await item(400)
    made = await billing.api.invoices.create_async({"customer": billing.customer, "subscription": other.id})
    assert made.total == 200
    made = await billing.api.invoices.create_async(
        {"customer": billing.customer, "pending_invoice_items_behavior": "include"}
    )
    assert made.total == 400
    await billing.advance_to(one.items.data[0].current_period_end)
    renewals = await billing.invoices(subscription=one.id)
    assert renewals[-1].total == 2000 + 100


async def test_items_are_put_on_a_draft_by_name(billing: Billing) -> None:
    api = billing.api
    stranger, ours = [
        await api.invoice_items.create_async({"customer": billing.customer, "amount": amount, "currency": "usd"})
        for amount in (70_000, 350)
    ]
    draft = await api.invoices.create_async(
        {"customer": billing.customer, "currency": "usd", "pending_invoice_items_behavior": "exclude"}
    )
    assert (draft.total, draft.auto_advance) == (0, False)
    filled = await api.invoices.add_lines_async(draft.id, {"lines": [{"invoice_item": ours.id}]})
    assert filled.total == 350
    assert (await api.invoice_items.retrieve_async(ours.id)).invoice == draft.id
    assert (await api.invoice_items.retrieve_async(stranger.id)).invoice is None
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await api.invoices.add_lines_async(draft.id, {"lines": [{"invoice_item": ours.id}]})
    assert caught.value.param == "lines[0][invoice_item]"
    await api.invoices.finalize_invoice_async(draft.id)
    with pytest.raises(stripe.InvalidRequestError):
        await api.invoices.add_lines_async(draft.id, {"lines": [{"invoice_item": stranger.id}]})
