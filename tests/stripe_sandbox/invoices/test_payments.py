import datetime as dt
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from tests.stripe_sandbox.billing import DAY, Billing, billing_at

HOUR = 3600


@pytest.fixture
async def billing(state_file: pathlib.Path) -> AsyncIterator[Billing]:
    async with billing_at(state_file, dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)) as made:
        yield made


async def _intent(billing: Billing, invoice_id: object) -> Any:  # noqa: ANN401 - the SDK's object
    found = await billing.api.invoices.retrieve_async(invoice_id, {"expand": ["payments.data.payment.payment_intent"]})
    return found.payments.data[0].payment.payment_intent


async def test_a_first_invoice_that_needs_authentication_waits_for_the_hosted_page(billing: Billing) -> None:
    await billing.card("requires_action")
    with pytest.raises(stripe.CardError) as refused:
        await billing.subscribe(payment_behavior="error_if_incomplete")
    assert (refused.value.http_status, refused.value.code) == (402, "subscription_payment_intent_requires_action")
    made = await billing.subscribe()
    assert made.status == "incomplete"
    assert (await _intent(billing, made.latest_invoice)).status == "requires_action"
    with pytest.raises(stripe.CardError) as again:
        await billing.api.invoices.pay_async(made.latest_invoice)
    assert again.value.code == "invoice_payment_intent_requires_action"
    page = await billing.sandbox.http.get(f"/invoice/{made.latest_invoice}")
    assert "Authenticate and pay" in page.text
    await billing.sandbox.http.post(f"/invoice/{made.latest_invoice}/pay")
    assert (await billing.subscription(made.id)).status == "active"
    assert (await _intent(billing, made.latest_invoice)).status == "succeeded"
    assert "invoice.payment_action_required" in await billing.types("invoice.")


async def test_a_renewal_that_needs_authentication_is_past_due(billing: Billing) -> None:
    made = await billing.subscribe()
    await billing.card("requires_action")
    await billing.advance_to(made.items.data[0].current_period_end + 2 * HOUR)
    assert (await billing.subscription(made.id)).status == "past_due"
    assert (await billing.types("invoice."))[-2:] == ["invoice.payment_action_required", "invoice.payment_failed"]


@pytest.mark.parametrize(("card", "status", "paid"), [("debit", "active", "paid"), ("debit_fails", "past_due", "open")])
async def test_a_subscription_is_active_while_its_debit_is_on_its_way(
    billing: Billing, card: str, status: str, paid: str
) -> None:
    await billing.card(card)
    made = await billing.subscribe(payment_behavior="error_if_incomplete")
    assert (made.status, (await _intent(billing, made.latest_invoice)).status) == ("active", "processing")
    with pytest.raises(stripe.InvalidRequestError, match="processing already"):
        await billing.api.invoices.pay_async(made.latest_invoice)
    await billing.advance(4 * DAY - 60)
    [first] = await billing.invoices()
    assert (first.status, first.amount_remaining) == ("open", 2000)
    await billing.advance(60)
    assert (await billing.subscription(made.id)).status == status
    assert [each.status for each in await billing.invoices()] == [paid]


@pytest.mark.parametrize(("card", "event"), [("debit", "succeeded"), ("debit_fails", "failed")])
async def test_a_checkout_by_debit_is_complete_and_unpaid_until_the_debit_ends(
    billing: Billing, card: str, event: str
) -> None:
    session = await billing.api.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://shop.example/done",
            "line_items": [{"price": billing.offer.base, "quantity": 1}],
        }
    )
    await billing.sandbox.http.post(f"/checkout/{session.id}/pay", data={"card": card})
    complete = await billing.api.checkout.sessions.retrieve_async(session.id)
    assert (complete.status, complete.payment_status) == ("complete", "unpaid")
    await billing.advance(5 * DAY)
    assert await billing.types("checkout.session.") == [
        "checkout.session.completed",
        f"checkout.session.async_payment_{event}",
    ]


async def test_a_checkout_authenticates_a_card_at_once(billing: Billing) -> None:
    session = await billing.api.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://shop.example/done",
            "line_items": [{"price": billing.offer.base, "quantity": 1}],
        }
    )
    await billing.sandbox.http.post(f"/checkout/{session.id}/pay", data={"card": "requires_action"})
    complete = await billing.api.checkout.sessions.retrieve_async(session.id)
    assert (complete.status, complete.payment_status) == ("complete", "paid")


async def test_less_than_the_smallest_charge_is_owed_with_the_next_invoice(billing: Billing) -> None:
    price = await billing.price(12)
    made = await billing.subscribe({"price": price, "quantity": 4})
    [first] = await billing.invoices()
    assert (first.total, first.amount_due, first.status, first.ending_balance) == (48, 0, "paid", 48)
    assert (await billing.api.customers.retrieve_async(billing.customer)).balance == 48
    await billing.advance_to(made.items.data[0].current_period_end + 2 * HOUR)
    second = (await billing.invoices())[-1]
    assert (second.total, second.starting_balance, second.amount_paid, second.ending_balance) == (48, 48, 96, 0)
    charges = await billing.api.charges.list_async({"customer": billing.customer})
    assert [each.amount for each in charges.data] == [96]


def _upgrade(made: stripe.Subscription, price: str) -> dict[str, Any]:
    return {
        "items": [{"id": made.items.data[0].id, "price": price}],
        "proration_behavior": "always_invoice",
        "payment_behavior": "pending_if_incomplete",
        "metadata": {"asked": "yes"},
    }


async def test_a_pending_update_is_applied_when_its_invoice_is_paid(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    price = await billing.price(5000)
    await billing.card("declines")
    waiting = await billing.api.subscriptions.update_async(made.id, _upgrade(made, price))
    assert (waiting.status, waiting.items.data[0].price.id) == ("active", billing.offer.base)
    assert waiting.pending_update.subscription_items[0].price.id == price
    assert waiting.pending_update.metadata.to_dict() == {"asked": "yes"}
    assert "asked" not in waiting.metadata.to_dict()
    await billing.card("works")
    await billing.api.invoices.pay_async(waiting.latest_invoice)
    after = await billing.subscription(made.id)
    assert (after.pending_update, after.items.data[0].price.id) == (None, price)
    assert after.metadata.to_dict() == {"asked": "yes"}
    assert "customer.subscription.pending_update_applied" in await billing.types("customer.subscription.")


async def test_a_pending_update_is_dropped_after_23_hours(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    price = await billing.price(5000)
    await billing.card("declines")
    await billing.api.subscriptions.update_async(made.id, _upgrade(made, price))
    await billing.advance(23 * HOUR + 1)
    after = await billing.subscription(made.id)
    assert (after.status, after.pending_update, after.items.data[0].price.id) == ("active", None, billing.offer.base)
    assert [each.status for each in await billing.invoices()] == ["paid", "void"]
    assert "customer.subscription.pending_update_expired" in await billing.types("customer.subscription.")


async def test_an_update_that_is_paid_is_never_pending(billing: Billing) -> None:
    made = await billing.subscribe({"price": billing.offer.base})
    price = await billing.price(5000)
    after = await billing.api.subscriptions.update_async(made.id, _upgrade(made, price))
    assert (after.pending_update, after.items.data[0].price.id) == (None, price)
    with pytest.raises(stripe.InvalidRequestError, match="description"):
        await billing.api.subscriptions.update_async(
            made.id, {"description": "x", "payment_behavior": "pending_if_incomplete"}
        )
