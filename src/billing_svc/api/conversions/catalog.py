"""Converts the catalog's plans, and subscriptions' statuses, to their messages."""

from google.protobuf import duration_pb2

from billing.v1 import plan_pb2, subscription_pb2
from billing_svc.api import fields
from billing_svc.catalog import model, parts
from billing_svc.platform import errors

PLANS_PAGE_SIZE = 50
PLANS_PAGE_SIZE_MAX = 500

_QUOTA_PERIODS = {
    "billing": plan_pb2.QUOTA_PERIOD_SUBSCRIPTION,
    "calendar_month": plan_pb2.QUOTA_PERIOD_CALENDAR_MONTH,
    "signup_anniversary": plan_pb2.QUOTA_PERIOD_SIGNUP_ANNIVERSARY,
}


def to_proto_status(status: str | None) -> subscription_pb2.Status.ValueType:
    """Return Stripe's status of a subscription as its enum value; STATUS_NONE for None (no subscription)."""
    if status is None:
        return subscription_pb2.STATUS_NONE
    try:
        return subscription_pb2.Status.Value(f"STATUS_{status.upper()}")
    except ValueError:
        return subscription_pb2.STATUS_UNKNOWN


def to_proto_quota_period(
    catalog: model.Catalog, plan: parts.Plan, *, is_default: bool
) -> plan_pb2.QuotaPeriod.ValueType:
    """Return the kind of a plan's quota periods."""
    return _QUOTA_PERIODS[catalog.free_period if is_default else plan.quota_period]


def from_proto_list_plans(request: subscription_pb2.ListPlansRequest) -> tuple[int, str]:
    """Return the page's size, and the plan that the page follows ("": the first page). Raises InvalidRequest."""
    check = fields.Fields()
    if not 0 <= request.page_size <= PLANS_PAGE_SIZE_MAX:
        check.refuse("page_size", f"is {request.page_size}; must be 1 to {PLANS_PAGE_SIZE_MAX}")
    check.done()
    return request.page_size or PLANS_PAGE_SIZE, fields.from_page_token(request.page_token)


def to_proto_plans(
    catalog: model.Catalog, version: int, *, include_unsold: bool, page_size: int, after: str
) -> subscription_pb2.ListPlansResponse:
    """Return a page of a catalog's plans, in the catalog's order."""
    keys = [
        key
        for key, plan in catalog.plans.items()
        if include_unsold or (plan.sold and plan.prices) or key == catalog.default_plan
    ]
    if after and after not in keys:
        raise errors.InvalidPageToken("page_token: does not belong to this list; begin with the first page again")
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


def _to_proto_plan(catalog: model.Catalog, plan: parts.Plan) -> plan_pb2.Plan:
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
        limits=[to_proto_limit(catalog, meter, limit) for meter, limit in plan.limits.items()],
        alert_percents=catalog.alert_percents,
        trial_days=plan.trial_days,
        is_default=is_default,
        sold=plan.sold and bool(plan.prices),
        per_seat=plan.per_seat,
        quota_period=to_proto_quota_period(catalog, plan, is_default=is_default),
    )
    if plan.rate_limit is not None:
        message.rate_limit.CopyFrom(to_proto_rate_limit(plan.rate_limit))
    overlay = plan.pay_as_you_go
    if overlay is not None:
        message.pay_as_you_go.CopyFrom(
            plan_pb2.PayAsYouGo(
                display_name=overlay.name,
                limits=[to_proto_limit(catalog, meter, limit) for meter, limit in overlay.limits.items()],
                rate_limit=None if overlay.rate_limit is None else to_proto_rate_limit(overlay.rate_limit),
                requires_payment_method=overlay.require_payment_method,
                overage_cap=None
                if overlay.overage_cap is None
                else fields.to_proto_money(overlay.overage_cap, catalog.currency),
            )
        )
    return message


def to_proto_limit(catalog: model.Catalog, meter: str, limit: parts.Limit) -> plan_pb2.Limit:
    """Return a plan's limit of a meter: the included quantity, and what happens beyond it."""
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


def to_proto_rate_limit(rate_limit: parts.RateLimit) -> plan_pb2.RateLimit:
    """Return how many checks are admitted."""
    window = duration_pb2.Duration()
    window.FromTimedelta(rate_limit.window)
    return plan_pb2.RateLimit(requests=rate_limit.requests, window=window)
