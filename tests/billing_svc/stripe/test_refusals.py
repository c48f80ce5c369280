"""What Stripe says when it refuses, as the errors that callers get."""

import pytest

from billing_svc.platform import errors
from billing_svc.stripe import refusals

PRICE, CUSTOMER = "price_1AbcDefGh", "cus_1AbcDefGh"
PARAMS = {"customer": CUSTOMER, "items": [{"price": PRICE}], "email": "a_b@c.example", "note": "Ann_Smith 5"}


def told(*, code: str = "", decline: str = "", param: str = "", text: str = "", card: bool = False) -> refusals.Told:
    return refusals.Told(code, decline, param, text, card)


@pytest.mark.parametrize(
    ("said", "kind", "metadata"),
    [
        (
            told(code="card_declined", decline="insufficient_funds", card=True),
            errors.PaymentFailed,
            {"stripe_code": "card_declined", "decline_code": "insufficient_funds"},
        ),
        (told(code="expired_card", card=True), errors.PaymentFailed, {"stripe_code": "expired_card"}),
        (
            told(code="subscription_payment_intent_requires_action", card=True),
            errors.PaymentActionRequired,
            {"stripe_code": "subscription_payment_intent_requires_action"},
        ),
        (
            told(code="card_declined", decline="authentication_required", card=True),
            errors.PaymentActionRequired,
            {"stripe_code": "card_declined", "decline_code": "authentication_required"},
        ),
        (
            told(
                code="resource_missing",
                text="This customer has no attached payment source or default payment method. Please consider ...",
            ),
            errors.PaymentMethodRequired,
            {"stripe_code": "resource_missing"},
        ),
        (
            told(code="resource_missing", param="customer", text=f"No such customer: '{CUSTOMER}'"),
            errors.CustomerMissing,
            {"stripe_code": "resource_missing", "stripe_param": "customer", "stripe_object": CUSTOMER},
        ),
        (
            told(param="items[0][price]", text="The price specified is inactive. This field only accepts ..."),
            errors.PriceArchivedAtStripe,
            {"stripe_param": "items[0][price]", "stripe_object": PRICE},
        ),
        (
            told(text=f"Price `{PRICE}` is not available to be purchased because its product is not active."),
            errors.PriceArchivedAtStripe,
            {"stripe_object": PRICE},
        ),
        (
            told(code="resource_missing", param="items[0][price]", text=f"No such price: '{PRICE}'"),
            errors.StripeRefused,
            {"stripe_code": "resource_missing", "stripe_param": "items[0][price]", "stripe_object": PRICE},
        ),
        (
            told(code="customer_tax_location_invalid"),
            errors.StripeRefused,
            {"stripe_code": "customer_tax_location_invalid"},
        ),
        (told(code="email_invalid", param="email"), errors.StripeRefused, {"stripe_code": "email_invalid"}),
        (told(code="later_code"), errors.StripeRefused, {"stripe_code": "later_code"}),
    ],
)
def test_each_refusal_is_named_after_its_cause(
    said: refusals.Told, kind: type[errors.StripeRefused], metadata: dict[str, str]
) -> None:
    error = refusals.translated(said, PARAMS)
    assert type(error) is kind
    assert {name: value for name, value in error.metadata.items() if value and name != "stripe_param"} == {
        name: value for name, value in metadata.items() if name != "stripe_param"
    }
    assert error.metadata["stripe_param"] == said.param
    assert "decline_code" not in error.metadata or error.metadata["decline_code"] == said.decline_code


def test_a_message_says_what_to_do() -> None:
    error = refusals.translated(told(code="customer_tax_location_invalid"), PARAMS)
    assert error.message == (
        "Stripe refused the request: customer_tax_location_invalid: Stripe cannot compute the tax for the customer's "
        "address; the customer can enter it on the page of CreatePortalSession"
    )
    two = refusals.translated(told(text="You cannot combine currencies on a single customer."), PARAMS)
    assert two.message.endswith(
        "the customer already pays in another currency; Stripe takes only one for each customer"
    )


@pytest.mark.parametrize("param", ["email", "note", "items", "items[1][price]", "items[x][price]", "other[0]", ""])
def test_only_ids_of_stripe_are_passed_on(param: str) -> None:
    assert refusals.named_by(param, PARAMS) == ""


def test_personal_data_in_stripe_s_text_is_not_passed_on() -> None:
    error = refusals.translated(told(param="email", text="Invalid email address: 'ann@x.example'"), PARAMS)
    assert "ann" not in error.message + repr(error.metadata)
