from tests.stripe_sandbox.conftest import Offer, Sandbox


async def test_the_root_page_lists_what_there_is(sandbox: Sandbox, offer: Offer) -> None:
    api = sandbox.stripe.v1
    empty = await sandbox.http.get("/")
    assert (empty.status_code, "Customers (0)" in empty.text) == (200, True)
    customer = await api.customers.create_async({"email": "<b>@example.com", "metadata": {"account_id": "org_42"}})
    await sandbox.http.post("/_sandbox/cards", json={"customer": customer.id, "card": "works"})
    subscription = await api.subscriptions.create_async({"customer": customer.id, "items": [{"price": offer.base}]})
    link = await api.payment_links.create_async({"line_items": [{"price": offer.base, "quantity": 1}]})
    session = await api.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "success_url": "https://shop.example/done",
            "line_items": [{"price": offer.base, "quantity": 1}],
        }
    )
    await sandbox.http.post("/_sandbox/faults", json={"kind": "rate_limited", "path": "/v1/none"})
    page = (await sandbox.http.get("/")).text
    assert "account_id=org_42" in page
    assert "&lt;b&gt;@example.com" in page
    assert f'href="/invoice/{subscription.latest_invoice}"' in page
    assert f'href="/checkout/{session.id}"' in page
    assert f'href="/pay/{link.id}"' in page
    assert subscription.id in page
    assert "rate_limited" in page
    assert "Next" in page
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
