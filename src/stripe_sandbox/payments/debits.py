"""Debits of bank accounts: the payment is on its way for days, and the subscription is active meanwhile."""

from stripe_sandbox import state
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.payments import payments
from stripe_sandbox.state import Json
from stripe_sandbox.time import moments


def begin(context: Context, invoice: Json, subscription: Json | None) -> Json:
    """Begin the debit of a finalised invoice."""
    named = invoice["default_payment_method"]
    method = payment_methods.default_of(context, invoice["customer"], subscription, named)
    succeeds = (
        bool(method) and payment_methods.last_digits(method or {}) == payment_methods.CARDS[payment_methods.DEBIT]
    )
    payments.change(context, invoice, "processing")
    debit = {"ends_at": context.now + moments.DEBIT_SECONDS, "succeeds": succeeds}
    begun = context.update({**invoice, "_debit": debit}, {"attempted": True, "next_payment_attempt": None}, None)
    begun = context.work.replace({**begun, "_debit": debit})
    if subscription and subscription["status"] == "incomplete":
        context.update(subscription, {"status": "active"}, "customer.subscription.updated")
    return begun


def on_its_way(invoice: Json) -> bool:
    """Say whether a debit for the invoice has begun and not ended."""
    return bool(invoice.get("_debit"))


def tell_checkout(context: Context, invoice: Json, *, succeeds: bool) -> None:
    """Emit the end of the debit for the checkout session that began it, if a checkout began it."""
    found, _ = context.work.select("checkout.session", {"invoice": invoice["id"]}, state.Page(1))
    for session in found:
        after = context.update(session, {"payment_status": "paid" if succeeds else "unpaid"}, None)
        context.emit(f"checkout.session.async_payment_{'succeeded' if succeeds else 'failed'}", after)
