"""Settlement: charges late all usage of an ended subscription that was sent, but that no invoice charges.

The last invoice includes the usage if the subscription ends as scheduled, or if it is cancelled with a final invoice.
It does not if Stripe gives up on a payment, or if a person cancels in the dashboard without a final invoice. The same
is true for invoice items of late usage that waited for the subscription's next invoice.

A billing period that a move has closed early (ADR 0019) is settled too: if a person adds a trial, for example, Stripe
need not charge the usage before it.
"""

import contextlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, parse, subscription_history, subscription_records
from billing_svc.usage_export import rules, states, store

_log = structlog.get_logger(__name__)

# After the subscription's end: by then the last invoice is final, and all sent events have arrived.
SETTLED_AFTER = timedelta(hours=2)
# A quota period may begin before the billing period that charges its usage.
_PERIODS_APART_MAX = timedelta(days=32)
# How many closed billing periods one round of the worker settles, and when it tries again after a failure.
CLOSED_MAX = 20
TRY_AGAIN = timedelta(minutes=5)

_ORIGIN = audit_store.Origin("service")


class UnbilledUsage:
    """Checks once what the invoices of an ended subscription charge."""

    def __init__(self, database: transactions.Transactions, stripe: client.Stripe, now: clock.Clock) -> None:
        self._database = database
        self._stripe = stripe
        self._clock = now

    async def settle(self, account_id: str, subscription_id: str) -> int:
        """Charge what no invoice of the subscription charges: reports by items, items by an invoice; returns how many.

        Never call it inside a transaction. A repeat finds them charged. Raises StripeUnavailable and Unavailable.
        """
        return await self._settle_slices(account_id, subscription_id) + await self._settle_items(
            account_id, subscription_id
        )

    async def settle_closed(self) -> int:
        """Settle the billing periods that moves have closed, once that can be known; returns how many were settled.

        A period whose settlement fails is tried again later. Raises Unavailable.
        """
        now = self._clock.now()
        closed = await self._database.read(lambda conn: subscription_history.to_settle(conn, CLOSED_MAX, now))
        for stretch in closed:
            again = None
            try:
                await self._settle_slices(stretch.account_id, stretch.subscription_id)
            except client.NotAtStripe:
                _log.warning("settlement_without_subscription", subscription=stretch.subscription_id)
            except errors.BillingError as error:
                _log.info("settlement_postponed", subscription=stretch.subscription_id, error=error.message)
                again = now + TRY_AGAIN
            await self._database.run(
                lambda conn, stretch=stretch, again=again: subscription_history.settle_again(conn, stretch, again)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            )
        return len(closed)

    async def _settle_slices(self, account_id: str, subscription_id: str) -> int:
        sent = await self._database.read(lambda conn: _sent(conn, account_id, subscription_id))
        if not sent:
            return 0
        since = min(report.reported_for for report in sent)
        charged: list[client.Data] = []
        for invoice in await self._stripe.invoices_of_subscription(subscription_id, since):
            # A void invoice counts too: a person or a pause of the collection voided it, and so forgave its lines.
            charged += await self._stripe.all_invoice_lines(invoice)
        prices = {
            name: await self._database.read(lambda conn, name=name: store.price_ids(conn, name))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            for name in {report.stripe_event_name for report in sent}
        }
        # Usage of a billing period that a move has closed may be on an item that waits for the next invoice.
        charged += [
            item for item in await self._stripe.invoice_items_of(sent[0].customer_id, since) if not item.get("invoice")
        ]
        unbilled = [report for report in sent if not _is_charged(report, charged, prices[report.stripe_event_name])]
        if unbilled:
            _log.warning(
                "usage_without_invoice", account=account_id, subscription=subscription_id, slices=len(unbilled)
            )
            change = states.unbilled(self._clock.now(), "no invoice of its subscription charges it")
            await self._reopen(unbilled, change, "usage.report_unbilled")
        return len(unbilled)

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


async def _sent(conn: AsyncConnection, account_id: str, subscription_id: str) -> list[rules.UsageReport]:
    """Return the reports that were sent for billing periods that are to be settled; usage in a trial is free.

    These are the periods that moves have closed, and the last period of a subscription that has ended. A report of a
    closed period with a later timestamp is on the invoice of the next period, unless that is a trial.
    """
    row = await subscription_records.find(conn, account_id, subscription_id)
    if row is None:
        return []
    closed = [(past.billing_period_start, past.effective_until) for past in row.past if past.settle_at is not None]
    if row.is_over:
        closed.append((row.billing_period_start, datetime.max.replace(tzinfo=UTC)))
    if not closed:
        return []
    since = min(start for start, _ in closed) - _PERIODS_APART_MAX
    sent = []
    for report in await store.all_of_account(conn, account_id, since):
        at = row.billed_at(report.reported_for, report.period_start)
        if (
            report.subscription_id == subscription_id
            and report.state is states.ReportState.SENT
            and any(start <= at < end for start, end in closed)
            and not row.was_trial(at)
            and (report.reported_for < at + 2 * subscription_records.SECOND or row.was_trial(report.reported_for))
        ):
            sent.append(report)
    return sent


async def _waiting(conn: AsyncConnection, account_id: str, subscription_id: str) -> list[rules.UsageReport]:
    """Return the reports whose items may have waited for an invoice of this subscription and get no other invoice."""
    held = await subscription_records.of_account(conn, account_id)
    row = next((record for record in held if record.subscription_id == subscription_id), None)
    if row is None or store.will_be_invoiced(held, row.customer_id):
        return []
    # Items from before the last billing period are on the invoice with which that period began.
    return await store.itemised_since(conn, account_id, row.customer_id, row.billing_period_start)


def _is_charged(report: rules.UsageReport, lines: Sequence[client.Data], price_ids: Collection[str]) -> bool:
    """Say whether a line charges a price of the report's meter for the time of the report's timestamp."""
    # `<=` at the end: if a subscription is ended at once, the last event's timestamp can be the second of the end.
    return any(
        period.instant("start") <= report.reported_for <= period.instant("end")
        for period in (
            parse.StripeFields.of(line, "invoice line").part("period")
            for line in lines
            if parse.price_of_line(line) in price_ids
        )
    )
