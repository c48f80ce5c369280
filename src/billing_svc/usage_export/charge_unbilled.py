"""Settlement: charges late all usage that was sent, but that no invoice charges, some time after what can cause that.

Causes are changes of a subscription's items, moves of its billing periods (ADR 0019), and its end. A meter counts what
it has accepted only some time later, so the line of a change may lack units. There is no such line if Stripe gives up
on a payment, or if a person cancels in the dashboard without a final invoice, or adds a trial. The same is true for
invoice items of late usage that waited for the subscription's next invoice.

`subscriptions.settle_at` says when a subscription is to be settled; `charged_units.py` compares (ADR 0025).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, subscription_history, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.usage_export import billability, billed_lines, charged_units, rules, states, store

_log = structlog.get_logger(__name__)

# After a change or an end: by then the last invoice is final, and all sent events have arrived.
SETTLED_AFTER = timedelta(hours=2)
# A quota period may begin before the billing period that charges its usage.
_PERIODS_APART_MAX = timedelta(days=32)
# How many subscriptions one round of the worker settles, and when it tries again: after a failure, and while a draft
# may still change.
SETTLED_MAX = 20
TRY_AGAIN = timedelta(minutes=5)
DRAFT_AGAIN = timedelta(hours=1)

_ORIGIN = audit_store.Origin("service")


@dataclass(frozen=True, slots=True)
class _Sent:
    """The reports of a subscription that were sent, with the ids of the prices that charge each meter."""

    row: subscription_records.SubscriptionRecord
    reports: Sequence[rules.UsageReport]
    prices: dict[str, set[str]]


class UnbilledUsage:
    """Compares what was sent with what the invoices of a subscription charge."""

    def __init__(self, database: transactions.Transactions, stripe: client.Stripe, now: clock.Clock) -> None:
        self._database = database
        self._stripe = stripe
        self._clock = now

    async def settle_due(self) -> int:
        """Settle the subscriptions that are due; returns how many were taken. Raises Unavailable.

        A subscription is settled again after a failure, and while a draft or a later change is undecided.
        """
        now = self._clock.now()
        due = await self._database.read(lambda conn: subscription_records.to_settle(conn, SETTLED_MAX, now))
        for row in due:
            try:
                again = await self.settle(row.account_id, row.subscription_id)
            except errors.BillingError as error:
                _log.info("settlement_postponed", subscription=row.subscription_id, error=error.message)
                again = now + TRY_AGAIN
            await self._database.run(
                lambda conn, row=row, again=again: subscription_records.settle_again(conn, row, again)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            )
        return len(due)

    async def settle(self, account_id: str, subscription_id: str) -> datetime | None:
        """Charge what no invoice of the subscription charges: reports by items, items by an invoice.

        Returns when to settle again; None if all is decided. Never call it inside a transaction. A repeat finds them
        charged. Raises StripeUnavailable, StripeObjectUnreadable and Unavailable.
        """
        await self._settle_items(account_id, subscription_id)
        return await self._settle_reports(account_id, subscription_id)

    async def _settle_reports(self, account_id: str, subscription_id: str) -> datetime | None:
        now = self._clock.now()
        sent = await self._database.read(lambda conn: _sent(conn, account_id, subscription_id))
        if sent is None:
            return None
        renewed_at = sent.row.billing_period_start + SETTLED_AFTER
        if sent.row.billing_period_start <= now < renewed_at:
            return renewed_at  # the invoice of the last period may not be final
        items = await self._items(sent.row)
        decided = [
            report
            for report in sent.reports
            if is_decided(
                sent.row, report, billability.item_since(sent.row, items, sent.prices[report.stripe_event_name])
            )
        ]
        if not decided:
            return None
        lines = await billed_lines.of_subscription(
            self._stripe,
            subscription_id,
            sent.row.customer_id,
            min(report.reported_for for report in decided),
            is_over=sent.row.is_over,
        )
        found: dict[str, charged_units.ReportCharge] = {}
        open_ids = {report.report_id for report in sent.reports} - {report.report_id for report in decided}
        for name, price_ids in sent.prices.items():
            own = [report for report in sent.reports if report.stripe_event_name == name]
            units = [sent_units(sent.row, report, is_open=report.report_id in open_ids) for report in own]
            found |= charged_units.compare(units, [one for key in price_ids for one in lines.get(key, ())]).reports
        charges = [(report, found.get(report.report_id, charged_units.ReportCharge())) for report in decided]
        unbilled = [report for report, charge in charges if charge.unbilled == report.units]
        if unbilled:
            _log.warning(
                "usage_without_invoice", account=account_id, subscription=subscription_id, slices=len(unbilled)
            )
            change = states.unbilled(now, "no invoice of its subscription charges it")
            await self._reopen(unbilled, change, "usage.report_unbilled")
        waiting = [report.reported_for for report, charge in charges if charge.waiting]
        # A draft may wait for a person for months; the older it is, the less often it is read.
        return now + max(DRAFT_AGAIN, (now - max(waiting)) / 10) if waiting else None

    async def _items(self, row: subscription_records.SubscriptionRecord) -> Sequence[stripe_subscriptions.Item]:
        """Return the items that still bill usage; none after the subscription's end."""
        if row.is_over:
            return ()
        try:
            fetched = stripe_subscriptions.from_stripe(await self._stripe.subscription(row.subscription_id))
        except client.NotAtStripe:
            _log.warning("settlement_without_subscription", subscription=row.subscription_id)
            return ()
        return () if fetched.is_over else fetched.items

    async def _settle_items(self, account_id: str, subscription_id: str) -> int:
        """Let items that waited for the subscription's next invoice have their own: that next invoice will not come."""
        left: list[rules.UsageReport] = []
        for report in await self._database.read(lambda conn: _waiting(conn, account_id, subscription_id)):
            # An item that is missing at Stripe was deleted there by a person; it is not charged again.
            with contextlib.suppress(client.NotAtStripe):
                item = await self._stripe.invoice_item(str(report.invoice_item_id))
                if not item.get("invoice"):
                    left.append(report)
        if left:
            _log.warning("items_without_invoice", account=account_id, subscription=subscription_id, items=len(left))
            await self._reopen(left, states.uninvoiced(self._clock.now()), "usage.item_uninvoiced")
        return len(left)

    async def _reopen(self, reports: Sequence[rules.UsageReport], change: states.Change, action: str) -> None:
        now = self._clock.now()

        async def reopen(conn: AsyncConnection) -> None:
            for report in reports:
                if await store.write(conn, report, change):
                    changes = {"report": report.report_id, "meter": report.meter, "units": report.units}
                    await audit_store.append(conn, _ORIGIN, report.account_id, action, changes, now)

        await self._database.run(reopen)


async def _sent(conn: AsyncConnection, account_id: str, subscription_id: str) -> _Sent | None:
    """Return the reports that were sent for a subscription; None if there are none. Usage in a trial is free."""
    row = await subscription_records.find(conn, account_id, subscription_id)
    if row is None or row.superfluous:
        return None  # the usage of a superfluous subscription is charged by the subscription that stays
    since = min([row.billing_period_start, *(past.billing_period_start for past in _closed(row))]) - _PERIODS_APART_MAX
    reports = [
        report
        for report in await store.all_of_account(conn, account_id, since)
        if report.subscription_id == subscription_id
        and report.state is states.ReportState.SENT
        and not row.was_trial(row.billed_at(report.reported_for, report.period_start))
    ]
    names = {report.stripe_event_name for report in reports}
    return _Sent(row, reports, {name: await store.price_ids(conn, name) for name in names}) if reports else None


def sent_units(
    row: subscription_records.SubscriptionRecord, report: rules.UsageReport, *, is_open: bool
) -> charged_units.SentUnits:
    """Return a report as Stripe bills it.

    Usage that was counted after a move, for the period before, has a later timestamp: it is on the line of the next
    period, unless that is a trial.
    """
    at = row.billed_at(report.reported_for, report.period_start)
    if report.reported_for >= at + 2 * subscription_records.SECOND and not row.was_trial(report.reported_for):
        at = report.reported_for
    return charged_units.SentUnits(report.report_id, at, report.units, is_open)


def is_decided(
    row: subscription_records.SubscriptionRecord, report: rules.UsageReport, item_since: datetime | None
) -> bool:
    """Say whether the line that charges a sent report must exist by now: no later invoice bills it.

    `item_since`: since when the subscription's present item bills the report's meter; None if it has no such item.
    """
    at = sent_units(row, report, is_open=False).at
    if row.is_over or at < row.billing_period_start:
        return True
    return item_since is None or at < item_since


def _closed(row: subscription_records.SubscriptionRecord) -> list[subscription_history.PastStretch]:
    """Return the stretches whose last billing period was closed by a move during the present period or the last."""
    return [past for past in row.past if past.effective_until >= row.billing_period_start - _PERIODS_APART_MAX]


async def _waiting(conn: AsyncConnection, account_id: str, subscription_id: str) -> list[rules.UsageReport]:
    """Return the reports whose items may have waited for an invoice of this subscription and get no other invoice."""
    held = await subscription_records.of_account(conn, account_id)
    row = next((record for record in held if record.subscription_id == subscription_id), None)
    if row is None or store.will_be_invoiced(held, row.customer_id):
        return []
    # Items from before the last billing period are on the invoice with which that period began.
    return await store.itemised_since(conn, account_id, row.customer_id, row.billing_period_start)
