"""Converts subscription and checkout messages to and from the types of `subscriptions`."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from billing.v1 import subscription_pb2
from billing_svc.api import fields
from billing_svc.api.conversions import catalog as catalog_conversions
from billing_svc.metering.quota import terms
from billing_svc.platform import money
from billing_svc.stripe import prices, subscription_records
from billing_svc.subscriptions.checkouts import store as checkouts_store

_BEHAVIORS = {
    "void": subscription_pb2.COLLECTION_BEHAVIOR_VOID,
    "keep_as_draft": subscription_pb2.COLLECTION_BEHAVIOR_KEEP_AS_DRAFT,
    "mark_uncollectible": subscription_pb2.COLLECTION_BEHAVIOR_MARK_UNCOLLECTIBLE,
}
_PAUSE_REASONS = {
    "pause_requested": subscription_pb2.PAUSE_REASON_REQUESTED,
    "trial_end_without_payment_method": subscription_pb2.PAUSE_REASON_TRIAL_ENDED,
    "first_payment_failure": subscription_pb2.PAUSE_REASON_PAYMENT_FAILED,
    "final_payment_failure": subscription_pb2.PAUSE_REASON_PAYMENT_FAILED,
}


def from_proto_get(request: subscription_pb2.GetSubscriptionRequest) -> str:
    """Return the requested account's id. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.done()
    return request.account_id


def from_proto_checkout(
    request: subscription_pb2.CreateCheckoutRequest, success_url: str, cancel_url: str, origins: Collection[str]
) -> checkouts_store.CheckoutOrder:
    """Return the order; `success_url` and `cancel_url` are the default URLs. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.name("plan", request.plan)
    if request.price:
        check.name("price", request.price)
    quantity = check.seats(request.quantity if request.HasField("quantity") else 1)
    check.email("customer_email", request.customer_email)
    check.optional_identifier("request_id", request.request_id)
    order = checkouts_store.CheckoutOrder(
        account_id=request.account_id,
        plan=request.plan,
        price=request.price,
        quantity=quantity,
        success_url=check.redirect_url("success_url", request.success_url or success_url, origins),
        cancel_url=check.redirect_url("cancel_url", request.cancel_url or cancel_url, origins),
        customer_email=request.customer_email,
        request_id=request.request_id,
    )
    check.done()
    return order


def to_proto_checkout(page: checkouts_store.CheckoutPage) -> subscription_pb2.CreateCheckoutResponse:
    """Return the checkout page for the customer."""
    return subscription_pb2.CreateCheckoutResponse(
        session_id=page.session_id or "",
        url=page.url or "",
        expires_at=fields.to_proto_instant(page.expires_at),
        reused=not page.is_new,
    )


def to_proto_subscription(
    under: terms.EffectiveTerms,
    account_state: terms.AccountState,
    rows: Sequence[subscription_records.SubscriptionRecord],
    custom_prices: Mapping[str, prices.CustomPrice],
    now: datetime,
) -> subscription_pb2.Subscription:
    """Return the plan in force, and the subscription that gives it, or else the latest plan subscription.

    `custom_prices` has the prices of the subscriptions that were made by hand at Stripe, by id.
    """
    in_force = under.subscription.subscription_id if under.subscription else None
    bought = [row for row in rows if not row.superfluous] or rows
    row = next((row for row in bought if row.subscription_id == in_force), bought[0] if bought else None)
    message = subscription_pb2.Subscription(
        plan=under.plan.key,
        plan_name=under.plan.name,
        status=subscription_pb2.STATUS_NONE,
        period_start=fields.to_proto_instant(under.period.start),
        period_end=fields.to_proto_instant(under.period.end),
        pay_as_you_go=under.pay_as_you_go,
        quota_period_start=fields.to_proto_instant(under.period.start),
        quota_period_end=fields.to_proto_instant(under.period.end),
        past_due=under.past_due,
        catalog_version=under.catalog_version,
        pay_as_you_go_offered=under.plan.pay_as_you_go is not None,
        pay_as_you_go_pending=_is_pending(under, account_state, rows),
    )
    if row is None:
        return message
    message.status = catalog_conversions.to_proto_status(row.status)
    message.subscription_id = row.subscription_id
    message.price = row.price
    message.quantity = row.quantity
    add_pauses(message, row)
    custom = custom_prices.get(row.custom_price_id or "")
    if custom is not None:
        message.custom_price.CopyFrom(to_proto_custom_price(custom))
    if row.trial_end is not None:
        message.trial_end.FromDatetime(row.trial_end)
    if row.ended_at is not None:
        message.ended_at.FromDatetime(row.ended_at)
    if under.subscription is not None:
        message.period_start.FromDatetime(row.billing_period_start)
        message.period_end.FromDatetime(row.billing_period_end)
        message.cancel_at_period_end = row.cancel_at_period_end or row.cancel_at == row.billing_period_end
        if row.effective_until is not None and row.effective_until > now:
            message.cancel_at.FromDatetime(row.effective_until)
        if row.pending_at is not None:
            message.pending_change.plan = row.pending_plan or ""
            message.pending_change.price = row.pending_price or ""
            message.pending_change.quantity = row.pending_quantity or 0
            message.pending_change.effective_at.FromDatetime(row.pending_at)
    return message


def add_pauses(message: subscription_pb2.Subscription, row: subscription_records.SubscriptionRecord) -> None:
    """Add to a message whether, and why, a subscription or the collection of its invoices is paused."""
    if row.collection_pause is not None:
        message.collection_pause.behavior = _BEHAVIORS.get(
            row.collection_pause, subscription_pb2.COLLECTION_BEHAVIOR_UNKNOWN
        )
        if row.collection_resumes_at is not None:
            message.collection_pause.resumes_at.FromDatetime(row.collection_resumes_at)
    if row.pause_reason is not None:
        message.pause_reason = _PAUSE_REASONS.get(row.pause_reason, subscription_pb2.PAUSE_REASON_UNKNOWN)


def to_proto_custom_price(custom: prices.CustomPrice) -> subscription_pb2.CustomPrice:
    """Return a price that was made by hand; without an amount if the price has tiers."""
    message = subscription_pb2.CustomPrice(
        price_id=custom.price_id, interval=custom.interval, interval_count=custom.interval_count
    )
    if custom.unit_amount is not None and custom.currency in money.EXPONENTS:
        amount = money.in_major_units(custom.unit_amount, custom.currency)
        message.amount.CopyFrom(fields.to_proto_money(amount, custom.currency))
    return message


def _is_pending(
    under: terms.EffectiveTerms,
    account_state: terms.AccountState,
    rows: Sequence[subscription_records.SubscriptionRecord],
) -> bool:
    """Say whether pay-as-you-go was switched on under a subscription that is not stored yet."""
    switched = account_state.pay_as_you_go_under
    if switched is None or under.subscription is not None or under.plan.pay_as_you_go is None:
        return False
    return account_state.metered_only is None and switched not in {row.subscription_id for row in rows}
