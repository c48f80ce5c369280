"""Charges invoices, repeats declined charges, and changes the subscription's status by the result."""

from stripe_sandbox import errors, state
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.invoices import invoicing
from stripe_sandbox.payments import debits, payments
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import endings, pauses, pending_updates
from stripe_sandbox.time import moments

RETRY_SECONDS = (3 * moments.DAY_SECONDS, 5 * moments.DAY_SECONDS, 7 * moments.DAY_SECONDS)
"""The pauses before further attempts. Their sum is less than a month: dunning ends before a monthly renewal."""

DUNNING_END = "dunning_ends_unpaid"
"""The stored fact that names the status after the last declined attempt, by its place in `DUNNING_ENDS`."""

DUNNING_ENDS = ("canceled", "unpaid", "paused")

PAUSES_AT_ONCE = "dunning_pauses_at_once"
"""The stored fact that is 1 if a subscription is paused after the first declined attempt for a renewal."""


def finalise_and_collect(context: Context, invoice: Json) -> Json:
    """Finalise and charge a draft whose time has come; a failure leaves it a draft."""
    if invoicing.cannot_finalise(context, invoice):
        return invoicing.fail(context, invoice)
    return collect(context, invoicing.finalise(context, invoice))


def finalise_and_collect_now(context: Context, invoice: Json) -> Json:
    """Finalise and charge a new invoice, unless a pause of the subscription's collection has set it aside."""
    return finalise_and_collect(context, invoice) if collectable(invoice) else invoice


def collectable(draft: Json) -> bool:
    """Say whether a new invoice waits to be finalised and charged."""
    return draft["status"] == "draft" and bool(draft["auto_advance"])


def collect(context: Context, invoice: Json, *, present: bool = False) -> Json:
    """Charge a finalised invoice. A decline raises nothing: it is stored in the invoice and its subscription.

    `present`: the customer is there, and authenticates the payment if the bank wants that.
    """
    if invoice["amount_remaining"] == 0:
        return settle(context, invoice)
    match _outcome(context, invoice):
        case None:
            return settle(context, invoice)
        case "authentication_required" if present:
            return settle(context, invoice)
        case "processing":
            return debits.begin(context, invoice, subscription_of(context, invoice))
        case reason:
            return _failed(context, invoice, reason)


def _outcome(context: Context, invoice: Json) -> str | None:
    subscription, named = subscription_of(context, invoice), invoice["default_payment_method"]
    return payment_methods.can_charge(context, invoice["customer"], subscription, named)


def waits_for_customer(invoice: Json) -> bool:
    """Say whether a finalised invoice needs something of the customer; a debit on its way needs nothing."""
    return invoice["status"] == "open" and not debits.on_its_way(invoice)


def refusal(
    context: Context, invoice: Json, subject: str = "subscription"
) -> errors.CardDeclined | errors.NoCard | None:
    """Return the error with which a charge of an invoice fails; None if it succeeds, or a debit begins."""
    match _outcome(context, invoice):
        case None | "processing":
            return None
        case "no_card":
            return errors.NoCard()
        case "authentication_required":
            return errors.ActionRequired(subject)
        case _:
            return errors.CardDeclined()


def pay(context: Context, invoice: Json) -> Json:
    """Charge an invoice on request. Raises CardDeclined and NoCard; such a decline does not count as an attempt.

    The attempt to pay the invoice of a resumption counts, though: it decides the status of the subscription.
    """
    subscription = subscription_of(context, invoice)
    if debits.on_its_way(invoice):
        raise errors.Refused("The payment of this invoice is processing already.")
    if refused := refusal(context, invoice, "invoice"):
        if subscription and pauses.resumption_of(subscription, invoice):
            _failed(context, invoice)
            raise errors.DeclinedAttempt
        raise refused
    return collect(context, invoice)


def settle(context: Context, invoice: Json, *, outside_stripe: bool = False) -> Json:
    """Mark a finalised invoice as paid, and make its subscription active if it waited for this payment."""
    charged = invoice["amount_remaining"] > 0 and not outside_stripe
    if charged:
        subscription, named = subscription_of(context, invoice), invoice["default_payment_method"]
        method = payment_methods.default_of(context, invoice["customer"], subscription, named)
        payments.succeed(context, invoice, invoice["amount_remaining"], method)
    elif outside_stripe:
        payments.change(context, invoice, "canceled")
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
    elif subscription and pending_updates.of(subscription, paid):
        pending_updates.apply(context, subscription)
    elif subscription and _was_waited_for(context, subscription, paid):
        context.update(subscription, {"status": "active"}, "customer.subscription.updated")
    return paid


def mark_uncollectible(context: Context, invoice: Json) -> Json:
    """Mark an invoice as uncollectible. A paused subscription that waits for its payment is resumed without it."""
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


def debit_ended(context: Context, invoice: Json) -> Json:
    """End a debit: the invoice is paid, or the attempt has failed."""
    succeeds = invoice["_debit"]["succeeds"]
    ended = context.work.replace({**invoice, "_debit": None})
    ended = settle(context, ended) if succeeds else _failed(context, ended, "debit_failed")
    debits.tell_checkout(context, ended, succeeds=succeeds)
    return ended


def _failed(context: Context, invoice: Json, reason: str = "card_declined") -> Json:
    attempts = invoice["attempt_count"] + 1
    # A subscription is active while the debit for its first invoice is on its way.
    first = invoice["billing_reason"] == "subscription_create" and reason != "debit_failed"
    # The first invoice of a subscription is charged only once; the customer has 23 hours to pay it.
    again = invoice["auto_advance"] and not first and attempts <= len(RETRY_SECONDS)
    changes = {
        "attempt_count": attempts,
        "attempted": True,
        "next_payment_attempt": context.now + RETRY_SECONDS[attempts - 1] if again else None,
    }
    tried = context.update(invoice, changes, None)
    _told(context, tried, reason)
    context.emit("invoice.payment_failed", tried)
    subscription = subscription_of(context, tried)
    if subscription and pending_updates.of(subscription, tried):
        return context.update(tried, {"next_payment_attempt": None}, None)
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


def _told(context: Context, tried: Json, reason: str) -> None:
    """Store in the payment intent why the payment failed."""
    error = {"code": reason, "decline_code": None, "message": "The payment failed.", "type": "card_error"}
    if reason == "authentication_required":
        payments.change(context, tried, "requires_action", error)
        context.emit("invoice.payment_action_required", tried)
    else:
        payments.change(context, tried, "requires_payment_method", error)


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
