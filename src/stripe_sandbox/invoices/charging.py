"""Getting an invoice paid: the charge, the attempts after a decline, and what both do to the subscription."""

from stripe_sandbox import errors, state
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings
from stripe_sandbox.time import moments

RETRY_SECONDS = (3 * moments.DAY_SECONDS, 5 * moments.DAY_SECONDS, 7 * moments.DAY_SECONDS)
"""The pauses before another attempt. All together shorter than a month, so that the renewals show what comes of it."""

ENDS_UNPAID = "dunning_ends_unpaid"
"""The fact that says what becomes of a subscription after the last attempt: 1 unpaid, else canceled."""


def finalise_and_collect(context: Context, invoice: Json) -> Json:
    """Do what happens to a draft when its time has come."""
    return collect(context, invoicing.finalise(context, invoice))


def collect(context: Context, invoice: Json) -> Json:
    """Charge a final invoice. A decline is no error: it is noted on the invoice and its subscription."""
    if invoice["amount_remaining"] == 0:
        return settle(context, invoice)
    declined = payment_methods.can_charge(context, invoice["customer"], subscription_of(context, invoice))
    return _failed(context, invoice) if declined else settle(context, invoice)


def pay(context: Context, invoice: Json) -> Json:
    """Charge an invoice because somebody asks. Raises CardDeclined, and the decline is not counted as an attempt."""
    if payment_methods.can_charge(context, invoice["customer"], subscription_of(context, invoice)):
        raise errors.CardDeclined
    return settle(context, invoice)


def settle(context: Context, invoice: Json, *, outside_stripe: bool = False) -> Json:
    """Mark a final invoice as paid, and wake its subscription up if that is what it waited for."""
    charged = invoice["amount_remaining"] > 0 and not outside_stripe
    changes = {
        "amount_paid": invoice["amount_due"],
        "amount_paid_off_stripe": invoice["amount_due"] if outside_stripe else 0,
        "amount_remaining": 0,
        "attempt_count": invoice["attempt_count"] + (1 if charged else 0),
        "attempted": True,
        "auto_advance": False,
        "next_payment_attempt": None,
        "status": "paid",
        "status_transitions": {**invoice["status_transitions"], "paid_at": context.now},
    }
    paid = context.update(invoice, changes, None)
    context.emit("invoice.paid", paid)
    if not outside_stripe:
        context.emit("invoice.payment_succeeded", paid)
    subscription = subscription_of(context, paid)
    if subscription and _was_waited_for(context, subscription, paid):
        context.update(subscription, {"status": "active"}, "customer.subscription.updated")
    return paid


def _was_waited_for(context: Context, subscription: Json, paid: Json) -> bool:
    """Whether the subscription is good again: its latest final invoice decides, not an older one."""
    if subscription["status"] == "incomplete":
        return bool(paid["billing_reason"] == "subscription_create")
    if subscription["status"] not in {"past_due", "unpaid"}:
        return False
    found, _ = context.work.select(
        "invoice",
        {
            "parent.subscription_details.subscription": subscription["id"],
            "status": ["open", "paid", "uncollectible"],
        },
        state.Page(1),
    )
    return bool(found and found[0]["id"] == paid["id"])


def _failed(context: Context, invoice: Json) -> Json:
    attempts = invoice["attempt_count"] + 1
    first = invoice["billing_reason"] == "subscription_create"
    # The first invoice of a subscription is never tried again: the customer has 23 hours to pay it.
    again = invoice["auto_advance"] and not first and attempts <= len(RETRY_SECONDS)
    changes = {
        "attempt_count": attempts,
        "attempted": True,
        "next_payment_attempt": context.now + RETRY_SECONDS[attempts - 1] if again else None,
    }
    tried = context.update(invoice, changes, None)
    context.emit("invoice.payment_failed", tried)
    subscription = subscription_of(context, tried)
    if subscription is None or first:
        return tried
    if attempts > len(RETRY_SECONDS):
        _give_up(context, subscription)
    elif subscription["status"] == "active":
        context.update(subscription, {"status": "past_due"}, "customer.subscription.updated")
    return context.work.get("invoice", tried["id"])


def _give_up(context: Context, subscription: Json) -> None:
    if subscription["status"] not in {"active", "past_due"}:
        return
    if context.work.fact(ENDS_UNPAID):
        context.update(subscription, {"status": "unpaid"}, "customer.subscription.updated")
    else:
        endings.end(context, subscription, {"reason": "payment_failed"})


def subscription_of(context: Context, invoice: Json) -> Json | None:
    """Give the subscription that the invoice is of, if any."""
    details = (invoice["parent"] or {}).get("subscription_details")
    return context.work.get("subscription", details["subscription"]) if details else None
