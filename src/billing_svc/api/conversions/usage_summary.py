"""Converts usage summaries to the messages of GetUsage."""

from billing.v1 import plan_pb2, usage_pb2
from billing_svc.api import fields
from billing_svc.metering.usage_summary import rules, summarize_usage
from billing_svc.pricing import rules as pricing_rules

METERS_MAX = 100


def from_proto_get(request: usage_pb2.GetUsageRequest) -> summarize_usage.SummaryQuery:
    """Return the requested summary. Raises InvalidRequest."""
    check = fields.Fields()
    check.account_id(request.account_id)
    at = None
    if request.HasField("period_containing"):
        at = check.instant("period_containing", request.period_containing)
    if len(request.meters) > METERS_MAX:
        check.refuse("meters", f"has {len(request.meters)} entries; at most {METERS_MAX} are allowed")
    for n, meter in enumerate(request.meters[:METERS_MAX]):
        check.name(f"meters[{n}]", meter)
    check.done()
    return summarize_usage.SummaryQuery(
        account_id=request.account_id,
        at=at,
        meters=tuple(dict.fromkeys(request.meters)),
        with_shares=request.with_operations or request.with_days,
    )


def to_proto_usage(statement: rules.UsageSummary, request: usage_pb2.GetUsageRequest) -> usage_pb2.GetUsageResponse:
    """Return a summary with the requested details; if no meters are named, only the meters that matter."""
    under = statement.under
    return usage_pb2.GetUsageResponse(
        meters=[
            to_proto_meter_usage(line, with_operations=request.with_operations, with_days=request.with_days)
            for line in statement.lines
            if request.meters or line.matters
        ],
        period_start=fields.to_proto_instant(under.period.start),
        period_end=fields.to_proto_instant(under.period.end),
        plan=under.plan.key,
        plan_name=under.plan.name,
        pay_as_you_go=under.pay_as_you_go and under.plan.pay_as_you_go is not None,
        past_due=under.past_due,
        catalog_version=under.catalog_version,
    )


def to_proto_whole(statement: rules.UsageSummary) -> usage_pb2.GetUsageResponse:
    """Return a summary's meters that matter, without operations and days."""
    return to_proto_usage(statement, usage_pb2.GetUsageRequest())


def to_proto_meter_usage(
    line: rules.MeterSummary, *, with_operations: bool = False, with_days: bool = False
) -> usage_pb2.MeterUsage:
    """Return a meter's usage, limits and costs."""
    counter, limit, included = line.counter, line.allowance.limit, line.allowance.included
    usage = usage_pb2.MeterUsage(
        meter=line.meter,
        used=counter.shown_used,
        included=included or 0,
        percent=counter.shown_used * 100 // included if included else 0,
        unit=line.definition.unit,
        kind=plan_pb2.MeterKind.Value(f"METER_KIND_{line.definition.kind.upper()}"),
        reserved=counter.reserved,
        unlimited=included is None,
        billable=counter.billable,
        remaining=counter.remaining(included),
        peak=0 if counter.level is None else counter.used,
        in_plan=limit is not None,
        overridden=line.allowance.overridden,
    )
    if limit is not None and limit.beyond is not None and included is not None:
        usage.beyond = plan_pb2.Beyond.Value(f"BEYOND_{limit.beyond.upper()}")
    charging = pricing_rules.charging_limit(
        line.under.plan, line.meter, counter.billable, pay_as_you_go=line.under.pay_as_you_go
    )
    if charging is not None:
        cost = pricing_rules.overage(charging, counter.billable)
        usage.projected_overage_cost.CopyFrom(fields.to_proto_money(cost, line.under.catalog.currency))
    if limit is not None and limit.beyond == "grace" and line.grace_ends_at is not None:
        usage.grace_ends_at.FromDatetime(line.grace_ends_at)
    if with_operations:
        for share in rules.by_operation(line.shares):
            usage.by_operation.add(operation=share.operation, used=share.used, events=share.events)
    if with_days:
        for share in rules.by_day(line.shares):
            usage.by_day.add(date=share.day.isoformat(), used=share.used, events=share.events)
    return usage
