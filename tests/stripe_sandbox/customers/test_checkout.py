import asyncio
import time

import httpx
import pytest
import stripe
from stripe.checkout import Session

from tests.stripe_sandbox.conftest import Offer, Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # how the SDK calls httpx


async def opened(sandbox: Sandbox, offer: Offer, **more: object) -> Session:
    params: dict[str, object] = {
        "mode": "subscription",
        "success_url": "https://shop.example/done?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.example/back",
        "line_items": [{"price": offer.base, "quantity": 2}, {"price": offer.metered}],
        "metadata": {"of": "session"},
        "subscription_data": {"metadata": {"account_id": "acme"}},
        "customer_email": "buyer@example.com",
        **more,
    }
    return await sandbox.stripe.v1.checkout.sessions.create_async(params)  # type: ignore[arg-type] # put together here


async def pay(sandbox: Sandbox, session: Session) -> httpx.Response:
    assert session.url
    return await sandbox.http.post(f"{session.url}/pay", headers={"Authorization": ""})


async def test_the_page_shows_what_is_sold_and_escapes_it(sandbox: Sandbox, offer: Offer) -> None:
    session = await opened(sandbox, offer)
    assert session.url == f"{sandbox.url}/checkout/{session.id}"
    page = await sandbox.http.get(session.url)
    assert page.status_code == 200
    for text in ("Pro &lt;plan&gt;", "2 x 20.00 USD a month", "0.50 USD for each unit used", "buyer@example.com"):
        assert text in page.text
    assert "<plan>" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_paying_makes_a_subscription(sandbox: Sandbox, offer: Offer) -> None:
    session = await opened(sandbox, offer)
    answer = await pay(sandbox, session)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"https://shop.example/done?session={session.id}"
    done = await sandbox.stripe.v1.checkout.sessions.retrieve_async(
        session.id, {"expand": ["subscription", "line_items", "customer"]}
    )
    assert (done.status, done.payment_status, done.amount_total) == ("complete", "paid", 4000)
    assert isinstance(done.customer, stripe.Customer)
    assert done.customer.email == "buyer@example.com"
    assert done.line_items
    subscription = done.subscription
    assert isinstance(subscription, stripe.Subscription)
    assert subscription.status == "active"
    assert subscription.metadata.to_dict() == {"account_id": "acme"}
    base, metered = subscription.items.data
    assert (base.price.id, base.quantity, metered.price.id) == (offer.base, 2, offer.metered)
    assert "quantity" not in metered.to_dict()
    assert 28 <= (base.current_period_end - base.current_period_start) / 86400 <= 31
    assert "current_period_end" not in subscription.to_dict()
    assert abs(subscription.billing_cycle_anchor - time.time()) < 10


async def test_the_payment_is_on_an_invoice_of_the_subscription(sandbox: Sandbox, offer: Offer) -> None:
    session = await opened(sandbox, offer)
    await pay(sandbox, session)
    (subscription,) = (await sandbox.stripe.v1.subscriptions.list_async({})).data
    (invoice,) = (await sandbox.stripe.v1.invoices.list_async({"subscription": subscription.id})).data
    assert (invoice.status, invoice.amount_paid, invoice.amount_remaining) == ("paid", 4000, 0)
    assert invoice.parent
    assert invoice.parent.subscription_details
    assert (
        invoice.parent.subscription_details.subscription == subscription.id == subscription.items.data[0].subscription
    )
    assert subscription.latest_invoice == invoice.id


async def test_paying_twice_at_once_pays_once(sandbox: Sandbox, offer: Offer) -> None:
    session = await opened(sandbox, offer)
    answers = await asyncio.gather(*(pay(sandbox, session) for _ in range(10)))
    assert {(each.status_code, each.headers["location"]) for each in answers} == {
        (303, f"https://shop.example/done?session={session.id}")
    }
    assert len((await sandbox.stripe.v1.subscriptions.list_async({})).data) == 1
    assert len((await sandbox.stripe.v1.invoices.list_async({})).data) == 1
    page = await sandbox.http.get(str(session.url))
    assert (page.status_code, "has been paid" in page.text) == (410, True)


async def test_cancelling_leaves_the_session_open(sandbox: Sandbox, offer: Offer) -> None:
    session = await opened(sandbox, offer)
    answer = await sandbox.http.post(f"{session.url}/cancel")
    assert (answer.status_code, answer.headers["location"]) == (303, "https://shop.example/back")
    assert (await sandbox.stripe.v1.checkout.sessions.retrieve_async(session.id)).status == "open"
    assert (await pay(sandbox, session)).status_code == 303


async def test_an_expired_session_cannot_be_paid(sandbox: Sandbox, offer: Offer) -> None:
    session = await opened(sandbox, offer)
    sessions = sandbox.stripe.v1.checkout.sessions
    assert (await sessions.expire_async(session.id)).status == "expired"
    page = await pay(sandbox, session)
    assert (page.status_code, "has expired" in page.text) == (410, True)
    assert (await sandbox.stripe.v1.subscriptions.list_async({})).data == []
    with pytest.raises(stripe.InvalidRequestError, match="can be expired"):
        await sessions.expire_async(session.id)
    assert [each.id for each in (await sessions.list_async({"status": "expired"})).data] == [session.id]


async def test_a_page_of_no_session_is_a_404(sandbox: Sandbox) -> None:
    answer = await sandbox.http.get("/checkout/<script>")
    assert (answer.status_code, "<script>" in answer.text) == (404, False)


async def test_a_trial_costs_nothing_today(sandbox: Sandbox, offer: Offer) -> None:
    session = await opened(sandbox, offer, subscription_data={"trial_period_days": 14})
    answer = await sandbox.http.post(f"{session.url}/pay", headers={"Accept": "application/json"})
    assert answer.json()["status"] == "complete"
    subscription = await sandbox.stripe.v1.subscriptions.retrieve_async(answer.json()["subscription"])
    assert subscription.status == "trialing"
    assert subscription.trial_end
    assert subscription.trial_end - subscription.start_date == 14 * 86400
    assert subscription.items.data[0].current_period_end == subscription.trial_end
    invoice = await sandbox.stripe.v1.invoices.retrieve_async(answer.json()["invoice"])
    assert invoice.total == 0


async def test_a_session_can_be_made_for_a_known_customer(sandbox: Sandbox, offer: Offer) -> None:
    customer = await sandbox.stripe.v1.customers.create_async({"email": "known@example.com"})
    params: dict[str, object] = {"customer": customer.id}
    with pytest.raises(stripe.InvalidRequestError, match="only specify one"):
        await opened(sandbox, offer, **params)
    session = await sandbox.stripe.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://shop.example/done",
            "customer": customer.id,
            "line_items": [{"price": offer.base, "quantity": 1}],
        }
    )
    await pay(sandbox, session)
    (subscription,) = (await sandbox.stripe.v1.subscriptions.list_async({"customer": customer.id})).data
    assert subscription.customer == customer.id
    await sandbox.stripe.v1.customers.delete_async(customer.id)
    assert (await sandbox.stripe.v1.subscriptions.retrieve_async(subscription.id)).status == "canceled"
