"""Subscription and checkout messages to and from what the rules speak."""

from collections.abc import Collection
from datetime import datetime

from billing.v1 import subscription_pb2
from billing_svc import fields
from billing_svc.catalog import conversions as plans_conversions
from billing_svc.quota import terms
from billing_svc.subscriptions import checkout, store

SEATS_MAX = 100_000


def from_proto_get(request: subscription_pb2.GetSubscriptionRequest) -> str:
    """Return the account asked for. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.done()
    return request.account_id


def from_proto_checkout(
    request: subscription_pb2.CreateCheckoutRequest, success_url: str, cancel_url: str, origins: Collection[str]
) -> checkout.Order:
    """Return the order; URLs that were left out are the given ones. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.name("plan", request.plan)
    if request.price:
        check.name("price", request.price)
    quantity = request.quantity if request.HasField("quantity") else 1
    if not 1 <= quantity <= SEATS_MAX:
        check.refuse("quantity", f"is {quantity}; must be 1 to {SEATS_MAX}")
    check.email("customer_email", request.customer_email)
    check.optional_identifier("request_id", request.request_id)
    order = checkout.Order(
        account_id=request.account_id,
        plan=request.plan,
        price=request.price,
        quantity=quantity,
        success_url=check.redirect_url("success_url", request.success_url or success_url, origins),
        cancel_url=check.redirect_url("cancel_url", request.cancel_url or cancel_url, origins),
        customer_email=request.customer_email,
    )
    check.done()
    return order


def to_proto_checkout(page: checkout.Page) -> subscription_pb2.CreateCheckoutResponse:
    """Return the page that the customer is sent to."""
    return subscription_pb2.CreateCheckoutResponse(
        session_id=page.session_id or "",
        url=page.url or "",
        expires_at=fields.to_proto_instant(page.expires_at),
        reused=not page.is_new,
    )


def to_proto_subscription(under: terms.Terms, row: store.Row | None, now: datetime) -> subscription_pb2.Subscription:
    """Return the plan in force and how the account's latest plan subscription stands, if it ever had one."""
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
    )
    if row is None:
        return message
    message.status = plans_conversions.to_proto_status(row.status)
    message.subscription_id = row.subscription_id
    message.price = row.price
    message.quantity = row.quantity
    if row.trial_end is not None:
        message.trial_end.FromDatetime(row.trial_end)
    if row.ended_at is not None:
        message.ended_at.FromDatetime(row.ended_at)
    if under.subscription is not None:
        message.period_start.FromDatetime(row.billing_period_start)
        message.period_end.FromDatetime(row.billing_period_end)
        message.cancel_at_period_end = row.cancel_at_period_end
        if row.effective_until is not None and row.effective_until > now:
            message.cancel_at.FromDatetime(row.effective_until)
    return message
