"""A deleted customer, and a canceled subscription: what stays of them cannot be changed any more."""

import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 9, 0, tzinfo=dt.UTC)) as made:
        yield made


async def test_a_draft_of_a_deleted_customer_never_becomes_final(
    billing: Billing, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = await billing.subscribe()
    ends = subscription.items.data[0].current_period_end
    await billing.use(30)
    await billing.advance_to(ends)
    await billing.use(5, timestamp=ends - 1)
    await billing.api.customers.delete_async(billing.customer)
    assert (await billing.subscription(subscription.id)).status == "canceled"
    await billing.use(5, timestamp=ends - 1)
    await billing.advance(4 * DAY)
    assert "given up" not in caplog.text
    draft = (await billing.invoices())[-1]
    assert (draft.status, draft.auto_advance, draft.automatically_finalizes_at) == ("draft", False, None)
    assert draft.total == 2000 + 35 * 50, "nothing that came after the deletion counts"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await billing.api.invoices.finalize_invoice_async(draft.id)
    assert caught.value.http_status == 400


async def test_an_open_invoice_of_a_deleted_customer_can_only_be_voided_or_marked_as_paid(billing: Billing) -> None:
    subscription = await billing.subscribe()
    await billing.card("declines")
    await billing.advance_to(subscription.items.data[0].current_period_end + 3600)
    await billing.api.customers.delete_async(billing.customer)
    await billing.advance(30 * DAY)
    invoice = (await billing.invoices())[-1]
    assert (invoice.status, invoice.attempt_count) == ("open", 1)
    with pytest.raises(stripe.InvalidRequestError):
        await billing.api.invoices.pay_async(invoice.id)
    assert (await billing.api.invoices.void_invoice_async(invoice.id)).status == "void"


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"a": "b"}}, {"description": "x"}, {"cancel_at_period_end": True}, {"trial_end": "now"}],
)
async def test_a_canceled_subscription_cannot_be_changed(billing: Billing, change: dict[str, Any]) -> None:
    subscription = await billing.subscribe()
    await billing.api.subscriptions.cancel_async(subscription.id)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await billing.api.subscriptions.update_async(subscription.id, change)
    assert caught.value.http_status == 400
    assert "canceled subscription" in str(caught.value)
    told = await billing.api.subscriptions.update_async(
        subscription.id, {"cancellation_details": {"comment": "too late"}}
    )
    assert told.cancellation_details.comment == "too late"
