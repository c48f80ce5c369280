"""Converts bills to the messages of PreviewCost."""

from billing.v1 import subscription_pb2
from billing_svc.api import fields
from billing_svc.api.conversions import changes
from billing_svc.pricing import rules
from billing_svc.subscriptions.previews import next_invoice, preview_cost
from billing_svc.subscriptions.previews import rules as preview_rules

USAGE_MAX = 100


def from_proto_preview(request: subscription_pb2.PreviewCostRequest) -> preview_cost.PreviewRequest:
    """Return the requested preview. Raises InvalidRequest."""
    check = fields.Fields()
    if request.account_id:
        check.account_id(request.account_id)
    elif not request.plan:
        check.refuse("plan", "give a plan, an account, or both")
    if request.plan:
        check.name("plan", request.plan)
    if request.price:
        check.name("price", request.price)
    quantity = request.quantity if request.HasField("quantity") else None
    if quantity is not None:
        check.seats(quantity)
    if len(request.usage) > USAGE_MAX:
        check.refuse("usage", f"has {len(request.usage)} entries; at most {USAGE_MAX} are allowed")
    usage = _usage(check, request)
    if request.with_next_invoice:
        what_if = request.plan or request.price or quantity is not None or usage or request.HasField("pay_as_you_go")
        if what_if or not request.account_id:
            check.refuse("with_next_invoice", "needs account_id, and no plan, price, quantity, usage or pay_as_you_go")
    check.done()
    return preview_cost.PreviewRequest(
        account_id=request.account_id,
        plan=request.plan,
        price=request.price,
        quantity=quantity,
        usage=usage,
        pay_as_you_go=request.pay_as_you_go if request.HasField("pay_as_you_go") else None,
    )


def _usage(check: fields.Fields, request: subscription_pb2.PreviewCostRequest) -> dict[str, int]:
    usage: dict[str, int] = {}
    for n, one in enumerate(request.usage[:USAGE_MAX]):
        check.name(f"usage[{n}].meter", one.meter)
        check.quantity(f"usage[{n}].quantity", one.quantity, least=0)
        if one.meter in usage:
            check.refuse(f"usage[{n}].meter", f"{one.meter!r} appears more than once")
        usage[one.meter] = one.quantity
    return usage


def to_proto_bill(
    bill: preview_rules.Bill, coming: next_invoice.NextInvoice | None = None
) -> subscription_pb2.PreviewCostResponse:
    """Return a bill, the base price first, and the totals of the account's next invoice if they were asked for."""
    under, currency = bill.under, bill.catalog.currency
    response = subscription_pb2.PreviewCostResponse(
        total=fields.to_proto_money(bill.total, currency),
        plan=under.plan.key,
        price="" if bill.base is None else bill.base.price_name,
        catalog_version=under.catalog_version,
        period_start=fields.to_proto_instant(under.period.start if bill.of_account else None),
        period_end=fields.to_proto_instant(under.period.end if bill.of_account else None),
        next_invoice=None if coming is None else changes.to_proto_totals(coming.totals, coming.currency),
    )
    if bill.base is not None:
        response.lines.append(_to_proto_base(bill, bill.base))
    response.lines.extend(_to_proto_line(line, currency) for line in bill.lines)
    return response


def _to_proto_base(bill: preview_rules.Bill, base: rules.BaseLine) -> subscription_pb2.CostLine:
    return subscription_pb2.CostLine(
        description=_describe_base(bill, base),
        quantity=base.seats,
        billable=base.seats,
        unit_price=fields.to_proto_money(base.price.amount, bill.catalog.currency),
        unit_price_units=1,
        amount=fields.to_proto_money(base.amount, bill.catalog.currency),
    )


def _to_proto_line(line: preview_rules.MeterLine, currency: str) -> subscription_pb2.CostLine:
    message = subscription_pb2.CostLine(
        description=_describe_line(line),
        meter=line.meter,
        quantity=line.quantity,
        included=line.included or 0,
        unlimited=line.included is None,
        billable=line.billable,
        amount=fields.to_proto_money(line.amount, currency),
        over_limit=line.over_limit,
    )
    if line.charging is not None and line.charging.unit_price is not None:
        message.unit_price.CopyFrom(fields.to_proto_money(line.charging.unit_price, currency))
        message.unit_price_units = line.charging.per
    return message


def _describe_base(bill: preview_rules.Bill, base: rules.BaseLine) -> str:
    text = f"{base.plan.name}, each {base.price.interval}"
    if base.price.per_seat:
        text += f", {base.seats:,} seat{'' if base.seats == 1 else 's'}"
    subscription = bill.under.subscription
    if subscription is not None and subscription.status == "trialing":
        return f"{text}; nothing is charged during the trial"
    if subscription is None and base.plan.trial_days:
        return f"{text}; the first {base.plan.trial_days} days of a new subscription are free"
    return text


def _describe_line(line: preview_rules.MeterLine) -> str:
    name = line.definition.display_name or line.meter
    text = f"{name}: {line.quantity:,} used"
    if not line.in_plan:
        return f"{text}, not part of the plan"
    if line.included is None:
        return f"{text}, unlimited"
    text += f" of {line.included:,} included"
    if line.billable:
        text += f", {line.billable:,} charged"
    return f"{text}, beyond the limit" if line.over_limit else text
