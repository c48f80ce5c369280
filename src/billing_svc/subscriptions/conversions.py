"""Subscription and plan messages to and from what the rules speak."""

from collections.abc import Collection
from datetime import datetime

from google.protobuf import duration_pb2

from billing.v1 import plan_pb2, subscription_pb2
from billing_svc import errors, fields
from billing_svc.catalog import model
from billing_svc.quota import terms
from billing_svc.subscriptions import checkout, rules, store

SEATS_MAX = 100_000
PLANS_PAGE_SIZE = 50
PLANS_PAGE_SIZE_MAX = 500

_STATUSES = {
    status: subscription_pb2.Status.Value(f"STATUS_{status.upper()}")
    for status in rules.GIVING | rules.SUSPENDED | rules.STILLBORN | rules.OVER
}
_QUOTA_PERIODS = {
    "billing": plan_pb2.QUOTA_PERIOD_SUBSCRIPTION,
    "calendar_month": plan_pb2.QUOTA_PERIOD_CALENDAR_MONTH,
    "signup_anniversary": plan_pb2.QUOTA_PERIOD_SIGNUP_ANNIVERSARY,
}


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
    message.status = _STATUSES.get(row.status, subscription_pb2.STATUS_UNKNOWN)
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


def from_proto_list_plans(request: subscription_pb2.ListPlansRequest) -> tuple[int, str]:
    """Return the size of the page, and the plan that it comes after ("": the first page). Raises InvalidRequest."""
    check = fields.Fields()
    if not 0 <= request.page_size <= PLANS_PAGE_SIZE_MAX:
        check.refuse("page_size", f"is {request.page_size}; must be 1 to {PLANS_PAGE_SIZE_MAX}")
    check.done()
    return request.page_size or PLANS_PAGE_SIZE, fields.from_page_token(request.page_token)


def to_proto_plans(
    catalog: model.Catalog, version: int, *, include_unsold: bool, page_size: int, after: str
) -> subscription_pb2.ListPlansResponse:
    """Return one page of a catalog's plans, in its order."""
    keys = [
        key
        for key, plan in catalog.plans.items()
        if include_unsold or (plan.sold and plan.prices) or key == catalog.default_plan
    ]
    if after and after not in keys:
        raise errors.InvalidPageToken("page_token: is not one of this list; begin with the first page again")
    start = keys.index(after) + 1 if after else 0
    page = keys[start : start + page_size]
    return subscription_pb2.ListPlansResponse(
        plans=[_to_proto_plan(catalog, catalog.plans[key]) for key in page],
        next_page_token=fields.to_page_token(page[-1]) if start + page_size < len(keys) else "",
        catalog=catalog.name,
        catalog_version=version,
        currency=catalog.currency,
        default_plan=catalog.default_plan,
        meters=[
            plan_pb2.Meter(
                meter=key,
                unit=meter.unit,
                kind=plan_pb2.MeterKind.Value(f"METER_KIND_{meter.kind.upper()}"),
                operations=meter.operations,
            )
            for key, meter in catalog.meters.items()
        ],
    )


def _to_proto_plan(catalog: model.Catalog, plan: model.Plan) -> plan_pb2.Plan:
    is_default = plan.key == catalog.default_plan
    message = plan_pb2.Plan(
        plan=plan.key,
        plan_name=plan.name,
        description=plan.description,
        prices=[
            plan_pb2.Price(
                price=key,
                amount=fields.to_proto_money(price.amount, catalog.currency),
                interval=plan_pb2.BillingInterval.Value(f"BILLING_INTERVAL_{price.interval.upper()}"),
                per_seat=price.per_seat,
            )
            for key, price in plan.prices.items()
        ],
        limits=[_to_proto_limit(catalog, meter, limit) for meter, limit in plan.limits.items()],
        alert_percents=catalog.alert_percents,
        trial_days=plan.trial_days,
        is_default=is_default,
        sold=plan.sold and bool(plan.prices),
        per_seat=plan.per_seat,
        quota_period=_QUOTA_PERIODS[catalog.free_period if is_default else plan.quota_period],
    )
    if plan.rate_limit is not None:
        message.rate_limit.CopyFrom(_to_proto_rate_limit(plan.rate_limit))
    overlay = plan.pay_as_you_go
    if overlay is not None:
        message.pay_as_you_go.CopyFrom(
            plan_pb2.PayAsYouGo(
                display_name=overlay.name,
                limits=[_to_proto_limit(catalog, meter, limit) for meter, limit in overlay.limits.items()],
                rate_limit=None if overlay.rate_limit is None else _to_proto_rate_limit(overlay.rate_limit),
                requires_payment_method=overlay.require_payment_method,
                overage_cap=None
                if overlay.overage_cap is None
                else fields.to_proto_money(overlay.overage_cap, catalog.currency),
            )
        )
    return message


def _to_proto_limit(catalog: model.Catalog, meter: str, limit: model.Limit) -> plan_pb2.Limit:
    message = plan_pb2.Limit(
        meter=meter,
        unit=catalog.meters[meter].unit,
        kind=plan_pb2.MeterKind.Value(f"METER_KIND_{catalog.meters[meter].kind.upper()}"),
        included=0 if limit.included == "unlimited" else limit.included,
        unlimited=limit.included == "unlimited",
        per_seat=limit.per_seat,
    )
    if limit.beyond is not None:
        message.beyond = plan_pb2.Beyond.Value(f"BEYOND_{limit.beyond.upper()}")
    if limit.unit_price is not None:
        message.unit_price.CopyFrom(fields.to_proto_money(limit.unit_price, catalog.currency))
        message.unit_price_units = limit.per
    if limit.beyond == "grace":
        message.grace_period.FromTimedelta(catalog.grace_period)
    return message


def _to_proto_rate_limit(rate_limit: model.RateLimit) -> plan_pb2.RateLimit:
    window = duration_pb2.Duration()
    window.FromTimedelta(rate_limit.window)
    return plan_pb2.RateLimit(requests=rate_limit.requests, window=window)
