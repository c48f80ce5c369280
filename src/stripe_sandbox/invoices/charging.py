"""Charges invoices, repeats declined charges, and changes the subscription's status by the result."""

from stripe_sandbox import errors, state
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings, pauses
from stripe_sandbox.time import moments

RETRY_SECONDS = (3 * moments.DAY_SECONDS, 5 * moments.DAY_SECONDS, 7 * moments.DAY_SECONDS)
"""The pauses before further attempts. Their sum is less than a month: dunning ends before a monthly renewal."""

DUNNING_END = "dunning_ends_unpaid"
"""The fact with the status of a subscription after the last declined attempt: a place in `DUNNING_ENDS`."""

DUNNING_ENDS = ("canceled", "unpaid", "paused")

PAUSES_AT_ONCE = "dunning_pauses_at_once"
"""The fact whether a subscription is paused after the first declined attempt for a renewal."""


def finalise_and_collect(context: Context, invoice: Json) -> Json:
    """Finalise and charge a draft whose time has come."""
    return collect(context, invoicing.finalise(context, invoice))


def finalise_and_collect_now(context: Context, invoice: Json) -> Json:
    """Finalise and charge a new invoice, unless a pause of the subscription's collection has set it aside."""
    return finalise_and_collect(context, invoice) if collectable(invoice) else invoice


def collectable(draft: Json) -> bool:
    """Say whether a new invoice waits to be finalised and charged."""
    return draft["status"] == "draft" and bool(draft["auto_advance"])


def collect(context: Context, invoice: Json) -> Json:
    """Charge a finalised invoice. A decline raises nothing: it is stored in the invoice and its subscription."""
    if invoice["amount_remaining"] == 0:
        return settle(context, invoice)
    declined = payment_methods.can_charge(context, invoice["customer"], subscription_of(context, invoice))
    return _failed(context, invoice) if declined else settle(context, invoice)


def pay(context: Context, invoice: Json) -> Json:
    """Charge an invoice on request. Raises CardDeclined; such a decline does not count as an attempt.

    The attempt to pay the invoice of a resumption counts, though: it decides the status of the subscription.
    """
    subscription = subscription_of(context, invoice)
    if payment_methods.can_charge(context, invoice["customer"], subscription):
        if subscription and pauses.resumption_of(subscription, invoice):
            _failed(context, invoice)
            raise errors.DeclinedAttempt
        raise errors.CardDeclined
    return settle(context, invoice)


def settle(context: Context, invoice: Json, *, outside_stripe: bool = False) -> Json:
    """Mark a finalised invoice as paid, and make its subscription active if it waited for this payment."""
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
    if subscription and pauses.resumption_of(subscription, paid):
        pauses.end(context, subscription)
    elif subscription and _was_waited_for(context, subscription, paid):
        context.update(subscription, {"status": "active"}, "customer.subscription.updated")
    return paid


def mark_uncollectible(context: Context, invoice: Json) -> Json:
    """Give up an invoice; a subscription that is resumed with it does not wait any longer."""
    marked = invoicing.mark_uncollectible(context, invoice)
    subscription = subscription_of(context, marked)
    if subscription and pauses.resumption_of(subscription, marked):
        pauses.end(context, subscription)
    return marked


def _was_waited_for(context: Context, subscription: Json, paid: Json) -> bool:
    """Say whether this payment makes the subscription active: only that of its latest finalised invoice does."""
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
    # The first invoice of a subscription is charged only once; the customer has 23 hours to pay it.
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
    if resumption := pauses.resumption_of(subscription, tried):
        if not resumption["on_success"]:
            tried = context.update(tried, {"next_payment_attempt": None}, None)
            pauses.end(context, subscription, "past_due")
        return tried
    renewal = invoice["billing_reason"] == "subscription_cycle"
    if attempts == 1 and renewal and context.work.fact(PAUSES_AT_ONCE) and pauses.possible(subscription):
        pauses.begin(context, subscription, "first_payment_failure")
    elif attempts > len(RETRY_SECONDS):
        _give_up(context, subscription)
    elif subscription["status"] == "active":
        context.update(subscription, {"status": "past_due"}, "customer.subscription.updated")
    return context.work.get("invoice", tried["id"])


def _give_up(context: Context, subscription: Json) -> None:
    if subscription["status"] not in {"active", "past_due"}:
        return
    match DUNNING_ENDS[context.work.fact(DUNNING_END)]:
        case "unpaid":
            context.update(subscription, {"status": "unpaid"}, "customer.subscription.updated")
        case "paused" if pauses.possible(subscription):
            pauses.begin(context, subscription, "final_payment_failure")
        case _:
            endings.end(context, subscription, {"reason": "payment_failed"})


def subscription_of(context: Context, invoice: Json) -> Json | None:
    """Return the subscription of the invoice; None if there is none."""
    details = (invoice["parent"] or {}).get("subscription_details")
    return context.work.get("subscription", details["subscription"]) if details else None
