import pytest

from tests.stripe_sandbox.conftest import Offer, Sandbox


async def _sold(sandbox: Sandbox, url: str) -> tuple[str, int]:
    """Open a link as a browser does, and pay; return the session's id and the last status."""
    opened = await sandbox.http.get(url)
    assert opened.status_code == 303
    page = opened.headers["location"]
    paid = await sandbox.http.post(f"{page}/pay", data={"card": "works"})
    return page.rpartition("/")[2], paid.status_code


@pytest.mark.parametrize(("given", "kept"), [("org_42", "org_42"), ("org:42/x", None), ("", None)])
async def test_a_link_sells_to_a_new_customer_and_keeps_only_a_valid_reference(
    sandbox: Sandbox, offer: Offer, given: str, kept: str | None
) -> None:
    link = await sandbox.stripe.v1.payment_links.create_async(
        {
            "line_items": [{"price": offer.base, "quantity": 1}, {"price": offer.metered, "quantity": 1}],
            "metadata": {"campaign": "spring"},
            "subscription_data": {"metadata": {"account_id": "org_42"}},
        }
    )
    session_id, status = await _sold(sandbox, f"{link.url}?client_reference_id={given}&prefilled_email=a@example.com")
    assert status == 200
    session = await sandbox.stripe.v1.checkout.sessions.retrieve_async(session_id)
    assert (session.status, session.client_reference_id, session.payment_link) == ("complete", kept, link.id)
    assert session.metadata is not None
    assert session.metadata.to_dict() == {"campaign": "spring"}
    subscription = await sandbox.stripe.v1.subscriptions.retrieve_async(str(session.subscription))
    assert (subscription.status, subscription.metadata.to_dict()) == ("active", {"account_id": "org_42"})
    customer = await sandbox.stripe.v1.customers.retrieve_async(str(session.customer))
    assert (customer.email, (customer.metadata or session).to_dict().get("account_id")) == ("a@example.com", None)


async def test_each_visit_sells_again_until_the_link_is_inactive(sandbox: Sandbox, offer: Offer) -> None:
    redirect = {"type": "redirect", "redirect": {"url": "https://shop.example/done?s={CHECKOUT_SESSION_ID}"}}
    link = await sandbox.stripe.v1.payment_links.create_async(
        {"line_items": [{"price": offer.base, "quantity": 2}], "after_completion": redirect}  # type: ignore[typeddict-item] # the literal is a str here
    )
    sold = [await _sold(sandbox, link.url) for _ in range(2)]
    assert len({session for session, _ in sold}) == 2
    assert [status for _, status in sold] == [303, 303]
    customers = await sandbox.stripe.v1.customers.list_async()
    assert len(customers.data) == 2
    await sandbox.stripe.v1.payment_links.update_async(link.id, {"active": False})
    assert (await sandbox.http.get(link.url)).status_code == 400
    listed = await sandbox.stripe.v1.payment_links.list_async({"active": False})
    assert [each.id for each in listed.data] == [link.id]
