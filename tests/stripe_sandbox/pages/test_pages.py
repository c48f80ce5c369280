"""The pages that a customer uses, except the portal."""

import pytest
import stripe

from tests.stripe_sandbox.conftest import Offer, Sandbox

DAY_SECONDS = 24 * 3600
JSON = {"Accept": "application/json"}


@pytest.fixture
async def page(sandbox: Sandbox, offer: Offer) -> str:
    session = await sandbox.stripe.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://a.example",
            "line_items": [{"price": offer.base, "quantity": 1}],
        }
    )
    assert session.url
    return session.url


async def bought(sandbox: Sandbox, page: str, card: str) -> stripe.Subscription:
    paid = await sandbox.http.post(f"{page}/pay", data={"card": card}, headers=JSON)
    return await sandbox.stripe.v1.subscriptions.retrieve_async(paid.json()["subscription"])


async def test_a_card_that_is_declined_leaves_the_checkout_open(sandbox: Sandbox, page: str) -> None:
    refused = await sandbox.http.post(f"{page}/pay", data={"card": "declines"})
    assert (refused.status_code, "declined" in refused.text) == (402, True)
    assert (await sandbox.stripe.v1.subscriptions.list_async({"status": "all"})).data == []
    assert (await sandbox.stripe.v1.customers.list_async({})).data == []
    assert (await sandbox.http.get(page)).status_code == 200
    assert (await bought(sandbox, page, "works")).status == "active"


async def test_a_card_that_works_once_fails_at_the_renewal(sandbox: Sandbox, page: str) -> None:
    subscription = await bought(sandbox, page, "works_once")
    assert subscription.status == "active"
    await sandbox.http.post("/_sandbox/clock/advance", json={"seconds": 32 * DAY_SECONDS, "pause_seconds": 0})
    assert (await sandbox.stripe.v1.subscriptions.retrieve_async(subscription.id)).status == "past_due"


async def test_an_open_invoice_can_be_paid_on_its_page(sandbox: Sandbox, page: str) -> None:
    subscription = await bought(sandbox, page, "works_once")
    await sandbox.http.post("/_sandbox/clock/advance", json={"seconds": 32 * DAY_SECONDS, "pause_seconds": 0})
    (invoice,) = (await sandbox.stripe.v1.invoices.list_async({"status": "open"})).data
    assert invoice.hosted_invoice_url
    shown = await sandbox.http.get(invoice.hosted_invoice_url)
    assert "20.00 USD" in shown.text
    for _ in range(2):
        assert (await sandbox.http.post(f"{invoice.hosted_invoice_url}/pay")).status_code == 303
    assert (await sandbox.stripe.v1.invoices.retrieve_async(str(invoice.id))).status == "paid"
    assert (await sandbox.stripe.v1.subscriptions.retrieve_async(subscription.id)).status == "active"
    paid = await sandbox.stripe.v1.events.list_async({"type": "invoice.paid"})
    assert [event.data.object["id"] for event in paid.data].count(str(invoice.id)) == 1


async def test_an_invoice_comes_as_a_file_too(sandbox: Sandbox, page: str) -> None:
    subscription = await bought(sandbox, page, "works")
    invoice = await sandbox.stripe.v1.invoices.retrieve_async(str(subscription.latest_invoice))
    assert invoice.invoice_pdf
    file = await sandbox.http.get(invoice.invoice_pdf)
    assert file.headers["content-type"] == "application/pdf"
    assert file.content.startswith(b"%PDF-")
    assert b"20.00 USD" in file.content


async def test_what_is_no_invoice_is_not_found(sandbox: Sandbox) -> None:
    assert (await sandbox.http.get("/invoice/in_nobody")).status_code == 404
