"""What Stripe said when it refused a request, as our own errors. Pure.

Stripe's own text may have personal data and is not passed on; where there is no code, the text is the only sign of the
cause.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from billing_svc.platform import errors

# The payment must be confirmed by the customer. As `code` of a payment that a subscription or an invoice needs, or as
# the decline code of a bank.
_ACTION = frozenset(
    {
        "authentication_not_handled",
        "authentication_required",
        "invoice_payment_intent_requires_action",
        "payment_intent_action_required",
        "subscription_payment_intent_requires_action",
    }
)
# Stripe has no code of its own for these.
_NO_CARD = ("no attached payment source", "no default payment method", "no payment method on file")
_ARCHIVED = ("price specified is inactive", "its product is not active", "price is not active", "plan is not active")
_TWO_CURRENCIES = ("combine currencies", "different currency", "same currency")

# What a person can do, by Stripe's code.
_ADVICE = {
    "amount_too_large": "the amount is more than Stripe charges at once",
    "amount_too_small": "the amount is less than Stripe charges in this currency",
    "coupon_expired": "the coupon has expired; choose another coupon",
    "customer_max_payment_methods": "the customer has as many payment methods as Stripe allows; remove one",
    "customer_max_subscriptions": "the customer has as many subscriptions as Stripe allows; end one at Stripe",
    "customer_tax_location_invalid": (
        "Stripe cannot compute the tax for the customer's address; the customer can enter it on the page of "
        "CreatePortalSession"
    ),
    "email_invalid": "the e-mail address is not valid",
    "livemode_mismatch": "the key is of the test mode and the object of the live mode, or the reverse",
    "payment_method_currency_mismatch": "the payment method cannot pay in this currency; use another",
    "payment_method_unsupported_type": "the payment method cannot be used for subscriptions; use another",
    "product_inactive": "the product is archived at Stripe; activate it there, or run `billing-svc catalog apply`",
    "resource_already_exists": "an object with this id exists at Stripe already",
    "resource_missing": "Stripe has no such object; it was deleted, or belongs to another Stripe account",
    "stripe_tax_inactive": "Stripe Tax is not set up; complete its settings in Stripe's dashboard",
    "taxes_calculation_failed": "Stripe could not compute the tax; send the same call again later",
    "testmode_charges_only": "the Stripe account is not activated for live payments yet",
    "url_invalid": "the address of the page is not valid",
}
# An id of Stripe's, such as "price_1Abc"; other values of parameters may be personal data.
_ID = re.compile(r"[a-z]{2,20}(_(test|live))?_[A-Za-z0-9]{1,250}")
_QUOTED = re.compile(r"[`']([a-z]{2,20}_[A-Za-z0-9]{8,250})[`']")
_STEP = re.compile(r"[^\[\]]+")


@dataclass(frozen=True, slots=True)
class Told:
    """The fields of Stripe's error; empty if Stripe left them out. `by_card`: a payment was refused (HTTP 402)."""

    code: str
    decline_code: str
    param: str
    text: str
    by_card: bool


def translated(told: Told, params: Mapping[str, Any]) -> errors.StripeRefused:
    """Return the error for a refusal; `params` are the parameters of the refused request."""
    # A preview has a subscription's parameters one level deeper, and Stripe does not always say so.
    about = named_by(told.param, params) or named_by(told.param, params.get("subscription_details") or {})
    about = about or next(iter(_QUOTED.findall(told.text)), "")
    if _has(told, _NO_CARD) or told.code == "missing":
        message = "the customer has no payment method; it can be added on the page of CreatePortalSession"
        return errors.PaymentMethodRequired(message, _metadata(told, about))
    if told.code in _ACTION or told.decline_code in _ACTION:
        message = "the customer's bank wants the customer to confirm the payment"
        return errors.PaymentActionRequired(message, _metadata(told, about))
    if told.by_card:
        why = told.decline_code or told.code
        message = f"the payment was refused{f' ({why})' if why else ''}; the customer can pay by another card"
        return errors.PaymentFailed(message, _metadata(told, about))
    if told.code == "resource_missing" and told.param.endswith("customer") and about:
        return errors.CustomerMissing(about)
    if told.code != "resource_missing" and _has(told, _ARCHIVED):
        message = f"price {about} or its product is archived at Stripe" if about else "a price is archived at Stripe"
        return errors.PriceArchivedAtStripe(message, {**_metadata(told, about), "plan": "", "price": ""})
    parts = [f"Stripe refused the request{f' for its parameter {told.param}' if told.param else ''}"]
    parts += [about, told.code, _advice(told)]
    return errors.StripeRefused(": ".join(part for part in parts if part), _metadata(told, about))


def named_by(param: str, params: Mapping[str, Any]) -> str:
    """Return the id that a request had as a parameter, such as `items[0][price]`; empty if there is none."""
    value: Any = params
    for step in _STEP.findall(param):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list | tuple) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return ""
    return value if isinstance(value, str) and _ID.fullmatch(value) else ""


def _advice(told: Told) -> str:
    if _has(told, _TWO_CURRENCIES):
        return "the customer already pays in another currency; Stripe takes only one for each customer"
    return _ADVICE.get(told.code, "")


def _has(told: Told, texts: tuple[str, ...]) -> bool:
    return any(text in told.text.lower() for text in texts)


def _metadata(told: Told, about: str) -> dict[str, str]:
    found = {
        "stripe_code": told.code,
        "stripe_param": told.param,
        "stripe_object": about,
        "decline_code": told.decline_code,
    }
    return {name: value for name, value in found.items() if value or name in {"stripe_code", "stripe_param"}}
