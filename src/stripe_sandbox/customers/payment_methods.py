"""Cards. A customer has at most one default card, which either works or is declined at every charge."""

from typing import Literal

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json

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
    """Give a customer a new default card."""
    made = _made(context, card)
    context.add("payment_method", {**made, "customer": customer_id})
    context.emit("payment_method.attached", {**made, "customer": customer_id}, {"customer": None})
    set_default(context, customer_id, made["id"])
    return context.work.get("payment_method", made["id"])


def change(context: Context, customer_id: str, choice: Choice) -> None:
    """Change or remove a customer's card. Raises NotFound for an unknown customer."""
    context.work.get("customer", customer_id)
    if choice == "none":
        remove(context, customer_id)
    else:
        attach(context, customer_id, CHOICES[choice])


def remove(context: Context, customer_id: str) -> None:
    """Detach all cards of a customer."""
    for card in _cards_of(context, customer_id):
        context.update(card, {"customer": None}, "payment_method.detached")
    set_default(context, customer_id, None)


def set_default(context: Context, customer_id: str, payment_method_id: str | None) -> None:
    """Set the card that is charged."""
    customer = context.work.get("customer", customer_id)
    chosen = {**customer["invoice_settings"], "default_payment_method": payment_method_id}
    context.update(customer, {"invoice_settings": chosen}, "customer.updated")


def default_of(context: Context, customer_id: str, subscription: Json | None = None) -> Json | None:
    """Return the card that is charged: the subscription's own, else the customer's; None if there is none."""
    customer = context.work.get("customer", customer_id)
    chosen = (subscription or {}).get("default_payment_method")
    chosen = chosen or (customer.get("invoice_settings") or {}).get("default_payment_method")
    found = context.work.find("payment_method", chosen) if chosen else None
    return found if found and found["customer"] == customer_id else None


def can_charge(context: Context, customer_id: str, subscription: Json | None = None) -> str | None:
    """Return None if a charge succeeds at once, else why not.

    The reasons: `no_card`, `card_declined`, `authentication_required`, and `processing` for a debit.
    """
    card = default_of(context, customer_id, subscription)
    if card is None:
        return "no_card"
    return OUTCOMES.get(last_digits(card))


def last_digits(method: Json) -> str:
    """Return the last digits of a card or bank account."""
    return str(method[method["type"]]["last4"])


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
