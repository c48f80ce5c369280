"""Converts messages that change or end subscriptions to and from the types of `subscriptions`."""

from collections.abc import Collection
from datetime import datetime

from billing.v1 import invoice_pb2, money_pb2, subscription_pb2
from billing_svc.api import fields
from billing_svc.customers import portal
from billing_svc.platform import money
from billing_svc.subscriptions.changes import cancel_subscription, costs, rules
from billing_svc.subscriptions.pay_as_you_go import toggle

_TIMINGS = (subscription_pb2.TIMING_NOW, subscription_pb2.TIMING_AT_PERIOD_END)


def from_proto_change(request: subscription_pb2.ChangePlanRequest, now: datetime) -> rules.ChangeOrder:
    """Return the requested change. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    if request.plan:
        check.name("plan", request.plan)
    if request.price:
        check.name("price", request.price)
    quantity = request.quantity if request.HasField("quantity") else None
    if quantity is not None:
        check.seats(quantity)
    _timing(check, request.timing)
    proration_at = None
    if request.HasField("proration_at"):
        proration_at = check.instant("proration_at", request.proration_at)
        if request.timing != subscription_pb2.TIMING_NOW:
            check.refuse("proration_at", "is allowed only with TIMING_NOW")
        elif proration_at > now:
            check.refuse("proration_at", "must not be in the future")
    if request.preview:
        check.optional_identifier("request_id", request.request_id)
    else:
        check.identifier("request_id", request.request_id)
    check.done()
    return rules.ChangeOrder(
        account_id=request.account_id,
        request_id=request.request_id,
        plan=request.plan,
        price=request.price,
        quantity=quantity,
        at_period_end=request.timing == subscription_pb2.TIMING_AT_PERIOD_END,
        proration_at=proration_at,
        release_foreign_schedule=request.release_foreign_schedule,
        newest_catalog=request.newest_catalog,
    )


def from_proto_cancel(request: subscription_pb2.CancelSubscriptionRequest) -> cancel_subscription.EndingRequest:
    """Return the requested cancellation. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    _timing(check, request.timing)
    check.identifier("request_id", request.request_id)
    check.done()
    at_period_end = request.timing == subscription_pb2.TIMING_AT_PERIOD_END
    return cancel_subscription.EndingRequest(
        request.account_id, request.request_id, at_period_end, request.release_foreign_schedule
    )


def from_proto_resume(request: subscription_pb2.ResumeSubscriptionRequest) -> cancel_subscription.ResumptionRequest:
    """Return the requested resumption. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.identifier("request_id", request.request_id)
    check.done()
    return cancel_subscription.ResumptionRequest(
        request.account_id, request.request_id, request.release_foreign_schedule
    )


def from_proto_switch(request: subscription_pb2.SetPayAsYouGoRequest) -> toggle.Switch:
    """Return the requested switch of pay-as-you-go. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.identifier("request_id", request.request_id)
    check.done()
    return toggle.Switch(request.account_id, request.request_id, request.enabled)


def from_proto_portal(
    request: subscription_pb2.CreatePortalSessionRequest, return_url: str, origins: Collection[str]
) -> portal.Visit:
    """Return the requested visit of the portal; `return_url` is the default URL. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    check.optional_identifier("request_id", request.request_id)
    url = check.redirect_url("return_url", request.return_url or return_url, origins)
    check.done()
    return portal.Visit(request.account_id, request.request_id, url)


def to_proto_change(
    outcome: costs.ChangeOutcome, subscription: subscription_pb2.Subscription
) -> subscription_pb2.ChangePlanResponse:
    """Return the change or its preview, and its cost."""
    return subscription_pb2.ChangePlanResponse(
        subscription=subscription,
        effective_at=fields.to_proto_instant(outcome.effective_at),
        lines=[_to_proto_line(line, outcome.currency) for line in outcome.lines],
        total=_to_proto_money(outcome.total, outcome.currency),
        proration_at=fields.to_proto_instant(outcome.proration_at),
        invoice_totals=None if outcome.totals is None else to_proto_totals(outcome.totals, outcome.currency),
    )


def to_proto_totals(totals: costs.InvoiceTotals, currency: str) -> invoice_pb2.InvoiceTotals:
    """Return the totals of an invoice."""
    return invoice_pb2.InvoiceTotals(
        subtotal=_to_proto_money(totals.subtotal, currency),
        discount=_to_proto_money(totals.discount, currency),
        tax=_to_proto_money(totals.tax, currency),
        total=_to_proto_money(totals.total, currency),
        credit=_to_proto_money(totals.credit, currency),
        amount_due=_to_proto_money(totals.amount_due, currency),
    )


def _to_proto_line(line: costs.ChangeLine, currency: str) -> invoice_pb2.InvoiceLine:
    return invoice_pb2.InvoiceLine(
        description=line.description,
        amount=_to_proto_money(line.amount, currency),
        quantity=line.quantity,
        meter=line.meter,
        period_start=fields.to_proto_instant(line.period_start),
        period_end=fields.to_proto_instant(line.period_end),
        proration=line.is_proration,
    )


def _to_proto_money(minor_units: int, currency: str) -> money_pb2.Money:
    return fields.to_proto_money(money.major_units(minor_units, currency), currency)


def _timing(check: fields.Fields, timing: subscription_pb2.Timing.ValueType) -> None:
    if timing not in _TIMINGS:
        check.refuse("timing", "is required: TIMING_NOW or TIMING_AT_PERIOD_END")
