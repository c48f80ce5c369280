"""What must hold at the end of a walk, whatever was done."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from billing.v1 import usage_pb2
from billing_svc.platform.database import tables
from tests.billing_svc import books
from tests.faults.walk import history
from tests.faults.walk.shop import METER
from tests.faults.walk.walker import ACCOUNT, Data, Walker

# The findings that follow from the items of living subscriptions alone.
ITEM_FINDINGS = frozenset({"items_differ", "two_plans", "two_subscriptions"})


async def judge(walker: Walker) -> None:
    """Assert everything."""
    await walker.compare_plan()
    await events_are_done(walker)
    await allowances_are_given_once(walker)
    await findings_are_explained(walker)
    await units_are_charged_once(walker)


async def events_are_done(walker: Walker) -> None:
    """No event waits, and no duty either."""
    waiting = await walker.ledger.world.rows(*walker.waiting)
    assert not waiting, f"{[(row.type, row.note) for row in waiting]}"
    failed = await walker.ledger.world.rows(tables.stripe_events, tables.stripe_events.c.state == "failed")
    assert not failed, f"{[(row.type, row.note) for row in failed]}"
    duties = await walker.ledger.world.rows(tables.subscription_duties)
    assert not duties, f"{duties}"


async def allowances_are_given_once(walker: Walker) -> None:
    """The periods of the account have no overlap and no gap, and in none was more granted than was included."""
    rows = await walker.ledger.world.rows(tables.usage_counters, tables.usage_counters.c.meter == METER)
    if not rows:
        return
    shown: list[tuple[datetime, datetime]] = []
    at, ends = min(row.period_start for row in rows), walker.now
    while at < ends:
        start, end = await _shown(walker, at)
        shown.append((start, end))
        at = end
    known = await history.bounds(walker)
    for before, after in pairwise(shown):
        assert before[1] == after[0] or known.allow_overlap(before, after), f"{before}, {after}"
    strange = [start for start, _ in shown[1:] if not known.explain(start)]
    assert not strange, f"periods began without a reason at {strange}"
    for start, granted in walker.uses.granted.items():
        end = next((row.period_end for row in rows if row.period_start == start), start)
        most = walker.included_between(start, end)
        assert granted <= most, f"{granted} of {most} units granted in {start} - {end}"


async def _shown(walker: Walker, at: datetime) -> tuple[datetime, datetime]:
    request = usage_pb2.GetUsageRequest(account_id=ACCOUNT, meters=[METER])
    request.period_containing.FromDatetime(at)
    told = await walker.ledger.world.billing.usage.GetUsage(request)
    return told.period_start.ToDatetime(UTC), told.period_end.ToDatetime(UTC)


async def findings_are_explained(walker: Walker) -> None:
    """`reconcile` shows nothing but findings that the acts explain, and no finding is missing."""
    subscriptions = await walker.subscriptions()
    justified = walker.expected.finding_kinds(subscriptions)
    stored = await walker.ledger.world.rows(tables.findings, tables.findings.c.closed_at.is_(None))
    found = {(row.kind, row.object_id) for row in stored if row.kind in ITEM_FINDINGS}
    assert found == justified, f"found {found}, justified {justified}"
    kinds = {row.kind for row in stored}
    assert "usage_billed_twice" not in kinds or walker.may_bill_twice
    others = [one for one in await walker.ledger.differences() if one[0] not in kinds]
    unexplained = [one for one in others if not _explained(walker, subscriptions, *one)]
    assert not unexplained, f"{unexplained}"


def _explained(walker: Walker, subscriptions: Sequence[Data], kind: str, detail: str) -> bool:
    """Say whether a person's act explains a row: a deleted item, or a customer that was deleted with its debts."""
    if kind == "usage: item":
        return any(item in detail for item in walker.deleted_items)
    if kind == "usage: line":
        gone = [one["id"] for one in subscriptions if one["customer"] in walker.deleted_customers]
        return any(subscription_id in detail for subscription_id in gone)
    if kind == "subscription":
        # Of a meter that was not known when a person added its item (ADR 0020); the next event mends a living one.
        return detail.startswith("extra_meters:") and "," not in detail
    return kind in {"usage: failed", "usage: uninvoiced"} and bool(walker.deleted_customers)


async def units_are_charged_once(walker: Walker) -> None:
    """Each unit beyond is on one invoice line or in one item, or free in a trial; else a finding says so."""
    await books.assert_balanced(walker.ledger.world.billing.engine)
    counters = await walker.ledger.world.rows(tables.usage_counters)
    beyond = sum(row.billable for row in counters)
    assert beyond == walker.uses.beyond
    reports = await walker.ledger.world.rows(tables.usage_reports)
    items = sum(row.to_units - row.from_units for row in reports if row.state == "invoiced")
    on_lines = await _units_on_lines(walker)
    timeline = await history.trials(walker)
    free = sum(use.billable for use in walker.uses.events.values() if _within(use.at, timeline))
    walker.note(f"{beyond} units beyond: {on_lines} on lines, {items} by items, {free} in trials")
    missing = beyond - on_lines - items
    forgiven = [row.to_units - row.from_units for row in reports if _is_forgiven(walker, row)]
    assert missing <= free + sum(forgiven), f"{missing} units are charged by nothing"
    # A finding, also one that was settled, says what was charged twice.
    kinds = {row.kind for row in await walker.ledger.world.rows(tables.findings)}
    assert missing >= 0 or "usage_billed_twice" in kinds, f"{-missing} units are charged twice"


def _is_forgiven(walker: Walker, report: sa.Row[Any]) -> bool:
    """Say whether a person gave a report up: deleted its item, or the customer that owed it."""
    return report.invoice_item_id in walker.deleted_items or report.customer_id in walker.deleted_customers


def _within(at: datetime, spans: Iterable[tuple[datetime, datetime]]) -> bool:
    return any(start - history.SLACK <= at <= end + history.SLACK for start, end in spans)


async def _units_on_lines(walker: Walker) -> int:
    """Return the units on the lines of prices that bill a meter of ours, whatever became of the invoices."""
    prices = [one for one in await walker.all("/v1/prices") if one["recurring"] is not None]
    metered = {one["id"] for one in prices if one["recurring"]["meter"] in walker.shop.plan_of_meter}
    found = 0
    for invoice in await walker.all("/v1/invoices"):
        if invoice["customer"] not in walker.customers:
            continue
        for line in await walker.all(f"/v1/invoices/{invoice['id']}/lines"):
            price = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
            if price in metered:
                found += line["quantity"] or 0
    return found
