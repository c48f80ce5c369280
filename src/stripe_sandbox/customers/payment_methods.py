"""Cards, each of which either works or is declined at every charge.

An invoice is charged to the card that it names, else to its subscription's card, else to the customer's default card. A
card that is only attached is never charged.
"""

from typing import Literal

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings

WORKS = "pm_card_visa"
DECLINES = "pm_card_chargeCustomerFail"
"""Stripe's names of test cards: the first can be charged, the second can be kept but not charged."""

AUTHENTICATES = "pm_card_authenticationRequired"
"""The card whose bank wants an authentication for every payment."""

DEBIT = "pm_usBankAccount_success"
DEBIT_FAILS = "pm_usBankAccount_insufficientFunds"
"""Bank accounts; a debit takes days until it succeeds or fails."""

CARDS = {WORKS: "4242", DECLINES: "0341", AUTHENTICATES: "3184", DEBIT: "6789", DEBIT_FAILS: "2227"}
"""The last digits of the cards and accounts; a charge is declined by them."""

OUTCOMES = {CARDS[DECLINES]: "card_declined", CARDS[AUTHENTICATES]: "authentication_required"}
OUTCOMES |= {CARDS[DEBIT]: "processing", CARDS[DEBIT_FAILS]: "processing"}

Choice = Literal["works", "declines", "requires_action", "debit", "debit_fails", "none"]
CHOICES: dict[str, str] = {
    "works": WORKS,
    "declines": DECLINES,
    "requires_action": AUTHENTICATES,
    "debit": DEBIT,
    "debit_fails": DEBIT_FAILS,
}
"""The choices of pages and control routes; `none` removes the card."""

CARD_YEAR = 2099
"""The year in which every card expires, far after any test."""


def attach(context: Context, customer_id: str, card: str = WORKS) -> Json:
    """Attach a new card to a customer; it becomes nobody's default."""
    made = context.add("payment_method", {**_made(context, card), "customer": customer_id})
    context.emit("payment_method.attached", made, {"customer": None})
    return made


def change(context: Context, customer_id: str, choice: Choice) -> None:
    """Change or remove a customer's card, as the portal does. Raises NotFound for an unknown customer.

    The new card becomes the customer's default, and replaces the cards of the customer's subscriptions.
    """
    if context.work.get("customer", customer_id).get("deleted"):
        raise errors.NotFound(f"No such customer: '{customer_id}'", param="id", code="resource_missing")
    if choice == "none":
        remove(context, customer_id)
        chosen = None
    else:
        chosen = attach(context, customer_id, CHOICES[choice])["id"]
    set_default(context, customer_id, chosen)
    for subscription in endings.living(context, customer_id):
        if subscription["default_payment_method"]:
            context.update(subscription, {"default_payment_method": chosen}, "customer.subscription.updated")


def replace(context: Context, subscription_id: str, card: str) -> None:
    """Charge a new card for one subscription from now on."""
    subscription = context.work.get("subscription", subscription_id)
    chosen = attach(context, subscription["customer"], card)
    context.update(subscription, {"default_payment_method": chosen["id"]}, "customer.subscription.updated")


def remove(context: Context, customer_id: str) -> None:
    """Detach all cards of a customer."""
    for card in _cards_of(context, customer_id):
        context.update(card, {"customer": None}, "payment_method.detached")


def set_default(context: Context, customer_id: str, payment_method_id: str | None) -> None:
    """Set the card that is charged."""
    customer = context.work.get("customer", customer_id)
    chosen = {**customer["invoice_settings"], "default_payment_method": payment_method_id}
    context.update(customer, {"invoice_settings": chosen}, "customer.updated")


def default_of(
    context: Context, customer_id: str, subscription: Json | None = None, named: str | None = None
) -> Json | None:
    """Return the card that is charged: `named`, else the subscription's own, else the customer's; None: there is none.

    A card that was detached since is not charged, and none is charged in its place.
    """
    customer = context.work.get("customer", customer_id)
    chosen = named or (subscription or {}).get("default_payment_method")
    chosen = chosen or (customer.get("invoice_settings") or {}).get("default_payment_method")
    found = context.work.find("payment_method", chosen) if chosen else None
    return found if found and found["customer"] == customer_id else None


def can_charge(
    context: Context, customer_id: str, subscription: Json | None = None, named: str | None = None
) -> str | None:
    """Return None if a charge succeeds at once, else why not.

    The reasons: `no_card`, `card_declined`, `authentication_required`, and `processing` for a debit.
    """
    card = default_of(context, customer_id, subscription, named)
    if card is None:
        return "no_card"
    return OUTCOMES.get(last_digits(card))


def last_digits(method: Json) -> str:
    """Return the last digits of a card or bank account."""
    return str(method[method["type"]]["last4"])


def check_owner(context: Context, customer_id: str, given: str | None) -> str | None:
    """Return the payment method; an empty text names none. Raises Refused if the customer does not have it."""
    if not given:
        return None
    found = context.work.get("payment_method", given, param="default_payment_method")
    if found["customer"] != customer_id:
        raise errors.Refused(
            "The customer does not have a payment method with this ID; attach it first.",
            param="default_payment_method",
            code="resource_missing",
        )
    return given


def retrieve(context: Context, params: forms.Params, payment_method_id: str) -> Json:
    """Answer GET /v1/payment_methods/{id}."""
    return context.show(context.work.get("payment_method", payment_method_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/payment_methods."""
    where: Json = {name: params[name] for name in ("customer", "type") if name in params}
    return context.show_list("payment_method", "/v1/payment_methods", where, params)


def list_of_customer(context: Context, params: forms.Params, customer_id: str) -> Json:
    """Answer GET /v1/customers/{id}/payment_methods."""
    context.work.get("customer", customer_id)
    where: Json = {"customer": customer_id, **({"type": params["type"]} if "type" in params else {})}
    return context.show_list("payment_method", f"/v1/customers/{customer_id}/payment_methods", where, params)


def attach_by_name(context: Context, params: forms.Params, payment_method_id: str) -> Json:
    """Answer POST /v1/payment_methods/{id}/attach. As with Stripe, the customer's default card does not change."""
    customer = context.work.get("customer", params["customer"], param="customer")
    if payment_method_id in CARDS:
        made = context.add("payment_method", {**_made(context, payment_method_id), "customer": None})
    else:
        made = context.work.get("payment_method", payment_method_id)
    if made["customer"] not in {None, customer["id"]}:
        raise errors.Refused("This payment method is attached to another customer.", param="customer")
    return context.show(context.update(made, {"customer": customer["id"]}, "payment_method.attached"), params)


def detach(context: Context, params: forms.Params, payment_method_id: str) -> Json:
    """Answer POST /v1/payment_methods/{id}/detach."""
    card = context.work.get("payment_method", payment_method_id)
    if card["customer"] is None:
        raise errors.Refused("The payment method is not attached to a customer.")
    chosen = default_of(context, card["customer"])
    detached = context.update(card, {"customer": None}, "payment_method.detached")
    if chosen and chosen["id"] == card["id"]:
        set_default(context, card["customer"], None)
    return context.show(detached, params)


def _cards_of(context: Context, customer_id: str) -> list[Json]:
    found, _ = context.work.select("payment_method", {"customer": customer_id}, state.Page(100))
    return found


def _made(context: Context, card: str) -> Json:
    if card not in CARDS:
        raise errors.Refused(f"No such PaymentMethod: '{card}'", param="payment_method", code="resource_missing")
    debit = card in {DEBIT, DEBIT_FAILS}
    account = {"account_type": "checking", "bank_name": "STRIPE TEST BANK", "last4": CARDS[card]}
    made = {
        "id": state.new_id("pm"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "card": {
            "brand": "visa",
            "country": "US",
            "display_brand": "visa",
            "exp_month": 12,
            "exp_year": CARD_YEAR,
            "funding": "credit",
            "last4": CARDS[card],
        },
        "created": context.now,
        "customer": None,
        "customer_account": None,
        "livemode": False,
        "metadata": {},
        "type": "us_bank_account" if debit else "card",
    }
    if debit:
        made["us_bank_account"] = account
        del made["card"]
    return made
