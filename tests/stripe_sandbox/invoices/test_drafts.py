"""When a draft becomes final: about an hour after it was created, later, or not at all."""

import datetime as dt
import pathlib
from collections.abc import AsyncIterator

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, billing_at

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx

HOUR = 3600


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 9, 0, tzinfo=dt.UTC)) as made:
        yield made


async def renewed(billing: Billing) -> stripe.Invoice:
    """Subscribe, and return the draft of the first renewal."""
    made = await billing.subscribe()
    await billing.advance_to(made.items.data[0].current_period_end)
    return (await billing.invoices())[-1]


async def status(billing: Billing, invoice: stripe.Invoice) -> str:
    return str((await billing.api.invoices.retrieve_async(invoice.id)).status)


async def test_all_drafts_can_last_longer_and_count_usage_until_then(billing: Billing) -> None:
    await billing.control("drafts", {"seconds": 3 * DAY})
    draft = await renewed(billing)
    assert draft.automatically_finalizes_at == draft.created + 3 * DAY
    await billing.advance(3 * DAY - 60)
    assert await status(billing, draft) == "draft"
    await billing.use(4, timestamp=draft.period_end - 1)
    await billing.advance(60)
    final = await billing.api.invoices.retrieve_async(draft.id)
    assert (final.status, final.total) == ("paid", 2000 + 4 * 50)


async def test_one_draft_can_last_longer(billing: Billing) -> None:
    draft = await renewed(billing)
    assert draft.automatically_finalizes_at == draft.created + HOUR
    await billing.control("drafts", {"invoice": draft.id, "seconds": 5 * HOUR})
    await billing.advance(5 * HOUR - 1)
    assert await status(billing, draft) == "draft"
    await billing.advance(1)
    assert await status(billing, draft) == "paid"


@pytest.mark.parametrize("of_all", [True, False])
async def test_a_draft_whose_finalisation_fails_stays_a_draft_with_the_reason(
    billing: Billing, *, of_all: bool
) -> None:
    draft = await renewed(billing)
    which = {} if of_all else {"invoice": draft.id}
    await billing.control("drafts", {**which, "fails": True})
    await billing.advance(3 * DAY)
    failed = await billing.api.invoices.retrieve_async(draft.id)
    assert (failed.status, failed.automatically_finalizes_at) == ("draft", None)
    assert failed.last_finalization_error.code == "customer_tax_location_invalid"
    assert await billing.types("invoice.finalization_failed") == ["invoice.finalization_failed"]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await billing.api.invoices.finalize_invoice_async(draft.id)
    assert (caught.value.http_status, caught.value.code) == (400, "customer_tax_location_invalid")
    await billing.control("drafts", {**which, "fails": False})
    assert await status(billing, draft) == "draft", "somebody has to finalise it"
    final = await billing.api.invoices.finalize_invoice_async(draft.id)
    assert (final.status, final.last_finalization_error) == ("paid", None)


async def test_only_a_draft_can_be_delayed(billing: Billing) -> None:
    await billing.subscribe()
    (paid,) = await billing.invoices()
    answer = await billing.sandbox.http.post("/_sandbox/drafts", json={"invoice": paid.id, "seconds": 60})
    assert answer.status_code == 400


async def test_a_draft_released_by_hand_becomes_final_after_the_delay(billing: Billing) -> None:
    await billing.control("delays", {"drafts": 2 * HOUR})
    draft = await billing.api.invoices.create_async({"customer": billing.customer})
    released = await billing.api.invoices.update_async(draft.id, {"auto_advance": True})
    assert released.automatically_finalizes_at == await billing.now() + 2 * HOUR
    held = await billing.api.invoices.update_async(draft.id, {"auto_advance": False})
    assert held.automatically_finalizes_at is None


async def test_a_draft_of_a_subscription_that_is_canceled_is_not_finalised(billing: Billing) -> None:
    draft = await renewed(billing)
    await billing.advance(60)
    await billing.api.subscriptions.cancel_async(str(draft.parent.subscription_details.subscription))  # type: ignore[union-attr]
    await billing.advance(4 * DAY)
    assert await status(billing, draft) == "draft"
