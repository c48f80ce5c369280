"""Decides whether Stripe's meter can still bill a usage report, and which step follows. Pure.

The main rule: an attempt is made only while its arrival is sure to be billed. So the meter bills every report that
arrived and no report that did not arrive, and the meter's total shows which of the two happened.
"""

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from billing_svc.stripe import parse, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.usage_export import rules

# Stripe remembers a meter event's identifier for at least 24 hours; a repeat within that time is not counted twice.
IDENTIFIER_TRUSTED_FOR = timedelta(hours=23)
# After this time a call's units are in the meter's totals, if they arrived at all.
SUMS_LAG_MAX = timedelta(minutes=10)
# Stripe accepts timestamps of the last 35 days.
AGE_MAX = timedelta(days=34, hours=23)
# A draft is finalised about an hour after its creation. Nothing is sent in the last minutes: it could arrive too late.
DRAFT_LASTS = timedelta(hours=1)
FINAL_MARGIN = timedelta(minutes=5)
# A renewal creates its invoice at once; if there is none after this time, there will be none.
INVOICE_LATE_MAX = timedelta(hours=2)
ASK_AGAIN = timedelta(minutes=1)
# Stripe creates the first items of a subscription within some seconds of its start.
CREATED_APART_MAX = timedelta(seconds=5)

# Invoices with these reasons do not charge a past period.
_OTHER_REASONS = frozenset({"subscription_create", "subscription_update", "manual", "upcoming"})


class Step(enum.Enum):
    """The next step for a usage report."""

    SEND = enum.auto()
    # Ask Stripe whether the period's invoice is still a draft.
    ASK = enum.auto()
    # The outcome of an attempt is unknown and a repeat is not safe: compare with the meter's total.
    LOOK = enum.auto()
    CHARGE_LATE = enum.auto()
    WAIT = enum.auto()


@dataclass(frozen=True, slots=True)
class NextStep:
    """A step; `until` is the end of the wait for the step WAIT."""

    step: Step
    until: datetime | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReportBilling:
    """The subscription that bills a usage report, as stored; `event_names` are those of the meters that it bills."""

    subscription: subscription_records.SubscriptionRecord
    event_names: Collection[str]
    # Several live items bill the report's meter, so each of their invoices would charge it.
    is_shared: bool = False
    # What the meter's line of the period comes to with this report, in minor units.
    line_amount: int = 0
    # A change of the subscription is not completed: Stripe may have made it already, and the stored row is older.
    is_changing: bool = False

    def at(self, report: rules.UsageReport) -> datetime:
        """Return the instant in which Stripe bills a report."""
        return self.subscription.billed_at(report.reported_for, report.period_start)


def next_step(report: rules.UsageReport, billing: ReportBilling | None, now: datetime) -> NextStep:
    """Return the next step for an accrued report, from the stored data alone."""
    found = _meter_open(report, billing, now)
    if report.first_attempt_at is None:
        return found
    is_known = report.refused_at is None and now < report.first_attempt_at + IDENTIFIER_TRUSTED_FOR
    return found if is_known and found.step is not Step.CHARGE_LATE else unknown(report, now)


def sent_until(period_end: datetime) -> datetime:
    """Return until when usage of a billing period is sent to its meter; what is later becomes an invoice item.

    A draft that lasts longer than usual leaves more time.
    """
    return period_end + DRAFT_LASTS - FINAL_MARGIN


def unknown(report: rules.UsageReport, now: datetime) -> NextStep:
    """Return LOOK once the meter's total must include every attempt that arrived; before that, WAIT."""
    ready_at = (report.last_attempt_at or now) + SUMS_LAG_MAX
    return NextStep(Step.LOOK) if now >= ready_at else NextStep(Step.WAIT, ready_at)


def _meter_open(report: rules.UsageReport, billing: ReportBilling | None, now: datetime) -> NextStep:
    if billing is None or billing.is_shared:
        why = "no subscription bills it" if billing is None else "several live items bill its meter"
        return NextStep(Step.CHARGE_LATE, why=why)
    subscription = billing.subscription
    if now - report.reported_for > AGE_MAX:
        return NextStep(Step.CHARGE_LATE, why="too old for its meter")
    at = billing.at(report)
    current = subscription.in_billing_period(at)
    ended_early = subscription.ended_at is None or subscription.ended_at < subscription.billing_period_end
    if subscription.is_over and current and ended_early:
        return NextStep(Step.CHARGE_LATE, why="its subscription has ended")
    if current and report.stripe_event_name not in billing.event_names:
        return NextStep(Step.CHARGE_LATE, why="its subscription has no such item any more")
    # Quota and billing periods can differ; and an item bills only what was used since the item is there.
    if at < max(subscription.billing_period_start, subscription.items_since or at):
        return NextStep(Step.ASK)
    end = subscription.billing_period_end if current else report.period_end
    return NextStep(Step.ASK if now >= end or subscription.is_over or billing.is_changing else Step.SEND)


def at_stripe(
    at: datetime,
    price_ids: Collection[str],
    fetched: stripe_subscriptions.StripeSubscription | None,
    billed_since: datetime | None,
    invoices: Sequence[Mapping[str, Any]],
    now: datetime,
) -> NextStep:
    """Return the next step for a report of a past period, from its subscription and that subscription's invoices.

    `at` is the instant in which Stripe bills the report, `billed_since` the result of `item_since`.
    """
    if fetched is None:
        return NextStep(Step.CHARGE_LATE, why="Stripe has no such subscription")
    is_over = fetched.status in stripe_subscriptions.OVER
    item = next((item for item in fetched.items if item.price_id in price_ids), None)
    was_there = item is not None and (billed_since is None or billed_since <= at)
    if item is not None and not is_over and item.period_start <= at < item.period_end:
        if was_there:
            return NextStep(Step.SEND)
        return NextStep(Step.CHARGE_LATE, why="its subscription's item was added later")
    covering = [invoice for invoice in invoices if _covers(invoice, at)]
    if any(invoice.get("status") != "draft" for invoice in covering):
        return NextStep(Step.CHARGE_LATE, why="its invoice is final")
    if not was_there and not any(_has_line(invoice, price_ids, at) for invoice in covering):
        return NextStep(Step.CHARGE_LATE, why="its subscription has no such item any more")
    since = fetched.ended_at if is_over or item is None else item.period_start
    return _into_draft(covering, now) if covering else _without_invoice(since, now)


def _without_invoice(since: datetime | None, now: datetime) -> NextStep:
    if since is None or now >= since + INVOICE_LATE_MAX:
        return NextStep(Step.CHARGE_LATE, why="no invoice was made for its period")
    return NextStep(Step.WAIT, now + ASK_AGAIN)


def _covers(invoice: Mapping[str, Any], at: datetime) -> bool:
    fields = parse.StripeFields.of(invoice, "invoice")
    if fields.get("billing_reason") in _OTHER_REASONS:
        return False
    return fields.instant("period_start") <= at < fields.instant("period_end")


def item_since(
    subscription: subscription_records.SubscriptionRecord,
    items: Sequence[stripe_subscriptions.Item],
    price_ids: Collection[str],
) -> datetime | None:
    """Return since when an item of the subscription bills a meter; None if no item has a price of the meter.

    `items` are those at Stripe. An item whose price was replaced keeps the time of its creation; then the stored time,
    at which the replacement was noticed, is later than all creations, and holds for all items.
    """
    created = {
        item.item_id: datetime.fromtimestamp(item.created, UTC)
        for item in items
        if item.price_id in price_ids or item.price.is_metered
    }
    since = min((created[item.item_id] for item in items if item.price_id in price_ids), default=None)
    if since is None:
        return None
    if subscription.items_since is not None and subscription.items_since > max(created.values()):
        return subscription.items_since
    start = subscription.effective_from
    return start if since <= start + CREATED_APART_MAX else since


def _has_line(invoice: Mapping[str, Any], price_ids: Collection[str], at: datetime) -> bool:
    """Say whether a line with one of the prices covers an instant; False if Stripe did not include the lines."""
    lines = parse.nested(invoice, "lines", "data")
    if not isinstance(lines, list):
        return False
    periods = [
        parse.StripeFields.of(line, "invoice line").part("period")
        for line in lines
        if parse.price_of_line(line) in price_ids
    ]
    return any(period.instant("start") <= at <= period.instant("end") for period in periods)


def _into_draft(drafts: Sequence[Mapping[str, Any]], now: datetime) -> NextStep:
    for draft in drafts:
        if draft.get("auto_advance", True) in (False, None) or draft.get("last_finalization_error"):
            continue  # only a person finalises it, not a timer
        fields = parse.StripeFields.of(draft, "invoice")
        final = fields.optional_instant("automatically_finalizes_at") or fields.instant("created") + DRAFT_LASTS
        if now >= final - FINAL_MARGIN:
            return NextStep(Step.WAIT, max(final, now) + ASK_AGAIN)
    return NextStep(Step.SEND)
