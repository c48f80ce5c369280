"""How subscriptions begin: with a trial or a first invoice, paid or not."""

import dataclasses
from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import rendering
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.invoices import amounts, charging, discounts, invoicing, lines, pending
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import periods, prorations, subscription_items


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The parameters of a new subscription, beside its lines."""

    metadata: dict[str, str]
    description: str | None = None
    trial_end: int | None = None
    without_card: str = "create_invoice"
    """What happens at the trial's end if the customer has no card."""

    anchor: int | None = None
    prorates: bool = True
    default_payment_method: str | None = None
    payment_behavior: str = "allow_incomplete"
    confirmed: bool = False
    """As in Checkout, the subscription begins incomplete, and the customer's payment makes it active at once.

    The customer is present, and authenticates the payment if the bank wants that.
    """

    discounts: list[dict[str, str]] = dataclasses.field(default_factory=list)


def begin(context: Context, customer: Json, chosen: list[subscription_items.Line], terms: Terms) -> Json:
    """Store a new subscription with its first invoice, which is charged at once.

    Lines without an interval are charged only once. If the first invoice is not paid, raises CardDeclined or NoCard
    with the `payment_behavior` `error_if_incomplete`; with any other, the subscription is incomplete.
    """
    subscription = _made(context, customer, chosen, terms)
    subscription["discounts"] = discounts.chosen(context, subscription, terms.discounts)
    charged = subscription["status"] != "trialing"
    data, charges = [], []
    for item in subscription["items"]["data"]:
        if not subscription_items.metered(item):
            charge = _first_charge(context, subscription, item, terms) if charged else None
            charge = charge or lines.in_advance(context.work, subscription, item, charged=False)
            charges.append(charge)
            item = {**item, "_debits": [prorations.debit(charge.amount, charge.start, charge.end)]}  # noqa: PLW2901 - with what it was charged
        data.append(item)
    subscription = {**subscription, "items": {**subscription["items"], "data": data}}
    charges += [_once(line, subscription) for line in chosen if not line.price["recurring"]]
    charges += [pending.charge_of(context, each) for each in pending.waiting(context, customer["id"], None)]
    context.work.insert("subscription", subscription)
    # With metered items only, there is no first invoice: flexible billing makes no lines of 0 for them.
    if charges:
        return _invoiced(context, customer, subscription, charges, terms)
    context.emit("customer.subscription.created", subscription)
    return subscription


def _invoiced(context: Context, customer: Json, subscription: Json, charges: list[lines.Charge], terms: Terms) -> Json:
    about = invoicing.Terms(reason="subscription_create", period=(context.now, context.now), subscription=subscription)
    invoice = invoicing.finalise(context, invoicing.draft(context, customer, charges, about))
    subscription = {**subscription, "latest_invoice": invoice["id"]}
    waits = invoice["amount_due"] > 0 and subscription["status"] == "active"
    if waits and terms.confirmed:
        context.work.replace(subscription := {**subscription, "status": "incomplete"})
        context.emit("customer.subscription.created", subscription)
    if terms.payment_behavior != "default_incomplete" or invoice["amount_due"] == 0:
        invoice = charging.collect(context, invoice, present=terms.confirmed)
    unpaid = charging.waits_for_customer(invoice)
    if unpaid and terms.payment_behavior == "error_if_incomplete":
        raise charging.refusal(context, invoice) or errors.CardDeclined()
    if waits and terms.confirmed:
        return context.work.get("subscription", subscription["id"])
    status = "incomplete" if unpaid else subscription["status"]
    context.work.replace(subscription := {**subscription, "status": status})
    context.emit("customer.subscription.created", subscription)
    return subscription


def _first_charge(context: Context, subscription: Json, item: Json, terms: Terms) -> lines.Charge:
    """Return the charge for the first period; a proportional part if the anchor makes the period shorter."""
    whole = lines.in_advance(context.work, subscription, item)
    if terms.anchor is None:
        return whole
    start, end = periods.current(terms.anchor, context.work.get("price", item["price"])["recurring"], context.now)
    part = amounts.share(whole.amount, whole.end - whole.start, end - start)
    return dataclasses.replace(whole, amount=part if terms.prorates else 0, proration=True)


def _once(line: subscription_items.Line, subscription: Json) -> lines.Charge:
    quantity = line.quantity or 0
    return lines.Charge(
        amount=amounts.of_units(line.price["unit_amount_decimal"], quantity),
        currency=line.price["currency"],
        start=subscription["created"],
        end=subscription["created"],
        quantity=quantity,
        description=line.price["nickname"],
        price=line.price,
        subscription=subscription["id"],
    )


def has_card(context: Context, subscription: Json) -> bool:
    """Say whether the customer or the subscription has a card; a charge may still be declined."""
    return payment_methods.can_charge(context, subscription["customer"], subscription) != "no_card"


def _period(context: Context, line: subscription_items.Line, terms: Terms, *, trialing: bool) -> tuple[int, int]:
    if trialing:
        return context.now, terms.trial_end or context.now
    anchor = terms.anchor or context.now
    return context.now, periods.current(anchor, line.price["recurring"], context.now)[1]


def _made(context: Context, customer: Json, chosen: list[subscription_items.Line], terms: Terms) -> Json:
    subscription_id = state.new_id("sub")
    trialing = terms.trial_end is not None and terms.trial_end > context.now
    items = [
        subscription_items.made(context, subscription_id, line, _period(context, line, terms, trialing=trialing))
        for line in chosen
        if line.price["recurring"]
    ]
    trial: dict[str, Any] = {
        "trial_end": terms.trial_end if trialing else None,
        "trial_settings": {"end_behavior": {"missing_payment_method": terms.without_card}},
        "trial_start": context.now if trialing else None,
    }
    return {
        "id": subscription_id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": (terms.trial_end if trialing else terms.anchor) or context.now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible", "updated_at": None},
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": context.now,
        "currency": chosen[0].price["currency"],
        "customer": customer["id"],
        "days_until_due": None,
        "default_payment_method": terms.default_payment_method,
        "default_source": None,
        "default_tax_rates": [],
        "description": terms.description,
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": rendering.listed(items, f"/v1/subscription_items?subscription={subscription_id}"),
        "latest_invoice": None,
        "livemode": False,
        "metadata": terms.metadata,
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": context.now,
        "status": "trialing" if trialing else "active",
        "status_details": None,
        "test_clock": None,
        "transfer_data": None,
        **trial,
        "_phase_end": None,
        "_credits_at_end": True,
        "_end_of_trial_announced": False,
    }
