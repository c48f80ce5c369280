import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 9, 0, tzinfo=dt.UTC)) as made:
        yield made


async def declined_renewal(billing: Billing) -> stripe.Subscription:
    made = await billing.subscribe()
    await billing.card("declines")
    await billing.advance_to(made.items.data[0].current_period_end + 3600)
    return await billing.subscription(made.id)


async def test_a_declined_renewal_is_past_due_until_it_is_paid(billing: Billing) -> None:
    subscription = await declined_renewal(billing)
    invoice = (await billing.invoices())[-1]
    assert (subscription.status, invoice.status, invoice.attempt_count) == ("past_due", "open", 1)
    assert invoice.next_payment_attempt
    with pytest.raises(stripe.CardError) as caught:
        await billing.api.invoices.pay_async(invoice.id)
    assert (caught.value.http_status, caught.value.code) == (402, "card_declined")
    await billing.advance(3 * DAY)
    assert (await billing.invoices())[-1].attempt_count == 2
    await billing.card("works")
    assert (await billing.subscription(subscription.id)).status == "past_due", "a card alone pays nothing"
    await billing.advance(5 * DAY)
    assert (await billing.subscription(subscription.id)).status == "active"
    assert (await billing.invoices())[-1].status == "paid"
    failed = [each for each in await billing.types("invoice.pay") if each == "invoice.payment_failed"]
    assert len(failed) == 2


async def test_after_the_last_attempt_the_subscription_is_canceled(billing: Billing) -> None:
    subscription = await declined_renewal(billing)
    await billing.advance(15 * DAY)
    over = await billing.subscription(subscription.id)
    invoice = (await billing.invoices())[-1]
    assert over.cancellation_details
    assert (over.status, over.cancellation_details.reason) == ("canceled", "payment_failed")
    assert (invoice.status, invoice.attempt_count, invoice.next_payment_attempt) == ("open", 4, None)


async def test_an_unpaid_subscription_s_invoices_stay_drafts_until_the_last_is_paid(billing: Billing) -> None:
    await billing.control("dunning", {"ends": "unpaid"})
    subscription = await declined_renewal(billing)
    await billing.advance(15 * DAY)
    assert (await billing.subscription(subscription.id)).status == "unpaid"
    await billing.advance_to(subscription.items.data[0].current_period_end + 2 * 3600)
    renewal = (await billing.invoices())[-1]
    assert renewal.status == "draft"
    await billing.card("works")
    await billing.api.invoices.pay_async(renewal.id)
    assert (await billing.subscription(subscription.id)).status == "active"


async def test_a_first_payment_that_is_declined_has_a_day(billing: Billing) -> None:
    await billing.card("declines")
    waiting = await billing.subscribe()
    never = await billing.subscribe({"price": billing.offer.base})
    assert (waiting.status, never.status) == ("incomplete", "incomplete")
    with pytest.raises(stripe.CardError):
        await billing.subscribe({"price": billing.offer.base}, payment_behavior="error_if_incomplete")
    assert len(await billing.invoices()) == 2, "an error leaves nothing behind"
    await billing.advance(20 * 3600)
    await billing.card("works")
    await billing.api.invoices.pay_async(waiting.latest_invoice)
    assert (await billing.subscription(waiting.id)).status == "active"
    await billing.advance(3 * 3600)
    assert (await billing.subscription(never.id)).status == "incomplete_expired"
    assert (await billing.api.invoices.retrieve_async(never.latest_invoice)).status == "void"


async def test_an_invoice_can_be_awaited_with_the_default_incomplete(billing: Billing) -> None:
    made = await billing.subscribe(payment_behavior="default_incomplete")
    assert (made.status, [invoice.status for invoice in await billing.invoices()]) == ("incomplete", ["open"])
    paid = await billing.api.invoices.pay_async(made.latest_invoice, {"paid_out_of_band": True})
    assert (paid.status, (await billing.subscription(made.id)).status) == ("paid", "active")
    assert "invoice.payment_succeeded" not in await billing.types("invoice")


async def test_a_deleted_customer_has_no_subscriptions(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.api.customers.delete_async(billing.customer)
    assert (await billing.subscription(made.id)).status == "canceled"
    assert "customer.deleted" in await billing.types("customer.d")
    await billing.advance(40 * DAY)
    assert len(await billing.invoices()) == 1
