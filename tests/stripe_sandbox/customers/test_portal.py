"""The portal: what its configuration allows, and what its buttons change at Stripe."""

import pathlib
from typing import Any

import httpx
import pytest
import stripe

from tests.stripe_sandbox.conftest import Offer, Sandbox, activates, make_offer, running

FEATURES: Any = {
    "invoice_history": {"enabled": True},
    "payment_method_update": {"enabled": True},
    "subscription_cancel": {"enabled": True},
}


class Customer:
    """A customer with a subscription, and the portal's page for it."""

    def __init__(self, sandbox: Sandbox, subscription: stripe.Subscription, url: str) -> None:
        self.sandbox = sandbox
        self.url = url
        self.id = str(subscription.customer)
        self.subscription_id = subscription.id

    async def press(self, button: str, **fields: str) -> httpx.Response:
        return await self.sandbox.http.post(f"{self.url}/{button}", data=fields)

    async def subscription(self) -> stripe.Subscription:
        return await self.sandbox.stripe.v1.subscriptions.retrieve_async(self.subscription_id)

    async def page(self) -> str:
        return (await self.sandbox.http.get(self.url)).text

    async def events(self, prefix: str) -> list[Any]:
        found = (await self.sandbox.stripe.v1.events.list_async({"limit": 100})).data
        return [event for event in reversed(found) if event.type.startswith(prefix) and not activates(event)]


async def configured(sandbox: Sandbox, features: Any = FEATURES) -> str:  # noqa: ANN401 - the SDK's many types
    made = await sandbox.stripe.v1.billing_portal.configurations.create_async({"features": features})
    return made.id


async def bought(sandbox: Sandbox, price: str) -> stripe.Subscription:
    session = await sandbox.stripe.v1.checkout.sessions.create_async(
        {"mode": "subscription", "success_url": "https://a.example", "line_items": [{"price": price, "quantity": 1}]}
    )
    paid = await sandbox.http.post(f"{session.url}/pay", headers={"Accept": "application/json"})
    return await sandbox.stripe.v1.subscriptions.retrieve_async(paid.json()["subscription"])


async def visiting(sandbox: Sandbox, offer: Offer, features: Any = FEATURES) -> Customer:  # noqa: ANN401 - as above
    subscription = await bought(sandbox, offer.base)
    session = await sandbox.stripe.v1.billing_portal.sessions.create_async(
        {
            "customer": str(subscription.customer),
            "configuration": await configured(sandbox, features),
            "return_url": "https://a.example/<back>",
        }
    )
    return Customer(sandbox, subscription, session.url)


@pytest.fixture
async def customer(sandbox: Sandbox, offer: Offer) -> Customer:
    return await visiting(sandbox, offer)


async def test_the_portal_shows_what_the_customer_has(customer: Customer) -> None:
    page = await customer.page()
    assert "Pro &lt;plan&gt;" in page
    assert "renews on" in page
    assert "20.00 USD" in page
    assert "4242" in page
    assert "https://a.example/&lt;back&gt;" in page
    assert [event.type for event in await customer.events("billing_portal.")] == [
        "billing_portal.configuration.created",
        "billing_portal.session.created",
    ]


async def test_cancelling_sets_the_time_and_not_the_flag(customer: Customer) -> None:
    assert (await customer.press("cancel", subscription=customer.subscription_id)).status_code == 303
    ending = await customer.subscription()
    assert (ending.status, ending.cancel_at_period_end) == ("active", False)
    assert ending.cancel_at == ending.items.data[0].current_period_end
    assert ending.cancellation_details
    assert ending.cancellation_details.reason == "cancellation_requested"
    (event,) = await customer.events("customer.subscription.updated")
    assert event.data.previous_attributes["cancel_at"] is None
    assert "ends on" in await customer.page()


async def test_a_cancellation_can_be_taken_back_in_the_portal(customer: Customer) -> None:
    await customer.press("cancel", subscription=customer.subscription_id)
    await customer.press("renew", subscription=customer.subscription_id)
    renewed = await customer.subscription()
    assert (renewed.cancel_at, renewed.cancel_at_period_end, renewed.canceled_at) == (None, False, None)
    assert len(await customer.events("customer.subscription.updated")) == 2


async def test_cancelling_at_once_where_the_configuration_says_so(sandbox: Sandbox, offer: Offer) -> None:
    features = {"subscription_cancel": {"enabled": True, "mode": "immediately"}}
    customer = await visiting(sandbox, offer, features)
    await customer.press("cancel", subscription=customer.subscription_id)
    assert (await customer.subscription()).status == "canceled"
    assert len(await customer.events("customer.subscription.deleted")) == 1


async def test_the_reason_is_asked_for_where_the_configuration_says_so(sandbox: Sandbox, offer: Offer) -> None:
    reason = {"enabled": True, "options": ["unused", "too_expensive"]}
    features = {"subscription_cancel": {"enabled": True, "cancellation_reason": reason}}
    customer = await visiting(sandbox, offer, features)
    assert "too expensive" in await customer.page()
    await customer.press("cancel", subscription=customer.subscription_id, feedback="too_expensive")
    details = (await customer.subscription()).cancellation_details
    assert details
    assert details.feedback == "too_expensive"


@pytest.mark.parametrize(("choice", "digits"), [("works", "4242"), ("declines", "0341"), ("none", None)])
async def test_the_chosen_card_becomes_the_default_payment_method(
    customer: Customer, choice: str, digits: str | None
) -> None:
    assert (await customer.press("card", card=choice)).status_code == 303
    owner = await customer.sandbox.stripe.v1.customers.retrieve_async(customer.id)
    assert owner.invoice_settings
    chosen = owner.invoice_settings.default_payment_method
    if digits is None:
        assert chosen is None
        return
    card = await customer.sandbox.stripe.v1.payment_methods.retrieve_async(str(chosen))
    assert card.card
    assert (card.customer, card.card.last4) == (customer.id, digits)
    assert digits in await customer.page()
    attached = await customer.events("payment_method.attached")
    assert attached[-1].data.object.id == card.id
    listed = await customer.sandbox.stripe.v1.customers.payment_methods.list_async(customer.id)
    assert card.id in [each.id for each in listed.data]


async def test_what_is_not_offered_cannot_be_done(sandbox: Sandbox, offer: Offer) -> None:
    customer = await visiting(sandbox, offer, {"invoice_history": {"enabled": True}})
    page = await customer.page()
    assert "Cancel the plan" not in page
    assert "Payment method" not in page
    for button, fields in (
        ("cancel", {"subscription": customer.subscription_id}),
        ("renew", {"subscription": customer.subscription_id}),
        ("card", {"card": "none"}),
    ):
        assert (await customer.press(button, **fields)).status_code == 400, button
    assert (await customer.subscription()).cancel_at is None


async def test_nobody_touches_what_is_anothers(customer: Customer, offer: Offer) -> None:
    other = await bought(customer.sandbox, offer.base)
    assert (await customer.press("cancel", subscription=other.id)).status_code == 400
    assert (await customer.press("pay", invoice=str(other.latest_invoice))).status_code == 400
    assert (await customer.sandbox.stripe.v1.subscriptions.retrieve_async(other.id)).cancel_at is None
    assert (await customer.sandbox.http.get("/portal/bps_nobody")).status_code == 404


async def test_a_session_is_over_after_an_hour(customer: Customer) -> None:
    await customer.sandbox.http.post("/_sandbox/clock/step", json={"seconds": 3601})
    assert (await customer.sandbox.http.get(customer.url)).status_code == 400
    assert (await customer.press("cancel", subscription=customer.subscription_id)).status_code == 400


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({}, "customer"),
        ({"customer": "cus_nobody", "configuration": "CONFIGURATION"}, "customer"),
        ({"customer": "CUSTOMER"}, "configuration"),
        ({"customer": "CUSTOMER", "configuration": "bpc_nobody"}, "configuration"),
        ({"customer": "CUSTOMER", "configuration": "INACTIVE"}, "configuration"),
        ({"customer": "CUSTOMER", "configuration": "CONFIGURATION", "return_url": "//b"}, "return_url"),
        (
            {
                "customer": "CUSTOMER",
                "configuration": "CONFIGURATION",
                "flow_data": {"type": "subscription_cancel", "subscription_cancel": {"subscription": "OTHER"}},
            },
            "flow_data[subscription_cancel][subscription]",
        ),
        (
            {"customer": "CUSTOMER", "configuration": "CONFIGURATION", "flow_data": {"type": "subscription_update"}},
            "flow_data[type]",
        ),
    ],
)
async def test_a_session_that_makes_no_sense_is_refused(
    sandbox: Sandbox, offer: Offer, params: dict[str, Any], param: str
) -> None:
    configurations = sandbox.stripe.v1.billing_portal.configurations
    inactive = await configured(sandbox)
    await configurations.update_async(inactive, {"active": False})
    names = {
        "CUSTOMER": (await sandbox.stripe.v1.customers.create_async({})).id,
        "CONFIGURATION": await configured(sandbox),
        "INACTIVE": inactive,
        "OTHER": (await bought(sandbox, offer.base)).id,
    }

    def filled(value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return names.get(value, value)

    with pytest.raises(stripe.InvalidRequestError) as refused:
        await sandbox.stripe.v1.billing_portal.sessions.create_async(filled(params))
    assert refused.value.param == param


async def test_a_session_may_lead_straight_to_cancelling(sandbox: Sandbox, offer: Offer) -> None:
    subscription = await bought(sandbox, offer.base)
    session = await sandbox.stripe.v1.billing_portal.sessions.create_async(
        {
            "customer": str(subscription.customer),
            "configuration": await configured(sandbox),
            "flow_data": {"type": "subscription_cancel", "subscription_cancel": {"subscription": subscription.id}},
        }
    )
    assert session.flow
    assert session.flow.type == "subscription_cancel"
    page = (await sandbox.http.get(session.url)).text
    assert ("Cancel the plan" in page, "Invoices" in page) == (True, False)


async def test_configurations_are_changed_and_listed(sandbox: Sandbox) -> None:
    configurations = sandbox.stripe.v1.billing_portal.configurations
    made = await configurations.create_async(
        {"features": FEATURES, "metadata": {"catalog": "nyqst"}, "default_return_url": "https://a.example"}
    )
    assert (made.active, made.is_default) == (True, False)
    assert made.features.subscription_cancel.mode == "at_period_end"
    assert made.features.subscription_update.enabled is False
    changed = await configurations.update_async(made.id, {"features": {"invoice_history": {"enabled": False}}})
    assert changed.features.invoice_history.enabled is False
    assert changed.features.subscription_cancel.enabled is True, "what is not named stays"
    other = await configured(sandbox)
    await configurations.update_async(other, {"active": False})
    assert [each.id for each in (await configurations.list_async({"active": True})).data] == [made.id]
    assert len((await configurations.list_async({})).data) == 2


async def test_a_product_may_not_offer_two_prices_of_one_interval(sandbox: Sandbox, offer: Offer) -> None:
    second = await sandbox.stripe.v1.prices.create_async(
        {"product": offer.product, "currency": "usd", "unit_amount": 1, "recurring": {"interval": "month"}}
    )
    offered = {"product": offer.product, "prices": [offer.base, second.id]}
    features = {"subscription_update": {"enabled": True, "default_allowed_updates": ["price"], "products": [offered]}}
    with pytest.raises(stripe.InvalidRequestError, match="same billing interval"):
        await configured(sandbox, features)


async def test_a_restart_keeps_the_portal(state_file: pathlib.Path) -> None:
    async with running(state_file) as sandbox:
        customer = await visiting(sandbox, await make_offer(sandbox))
        path = customer.url.removeprefix(sandbox.url)
    async with running(state_file) as sandbox:
        assert (await sandbox.http.get(path)).status_code == 200
