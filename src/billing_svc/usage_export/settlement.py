"""Settling: what was sent for a subscription that is over, and that none of its invoices charges, is charged late.

A subscription's last invoice has the usage when it ends as arranged, or when whoever ends it asks for that. It has not
when Stripe gives up on a payment, nor when somebody ends it in the dashboard without. The same holds for the items of
late usage that waited for its next invoice.
"""

import contextlib
from collections.abc import Collection, Sequence
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, parse
from billing_svc.usage_export import rules, states, store

_log = structlog.get_logger(__name__)

# After its end: the last invoice is final, and what was on the way has arrived.
SETTLED_AFTER = timedelta(hours=2)
# A quota period may have begun before the billing period that its usage is charged in.
_PERIODS_APART_MAX = timedelta(days=32)

_ORIGIN = audit_store.Origin("service")


class Settlement:
    """Looks once at what a subscription that has ended was charged."""

    def __init__(self, database: transactions.Transactions, stripe: client.Stripe, now: clock.Clock) -> None:
        self._database = database
        self._stripe = stripe
        self._clock = now

    async def settle(self, account_id: str, subscription_id: str) -> int:
        """Let what no invoice charges of it be charged: slices by items, and items by an invoice; returns how many.

        Never inside a transaction. A repeat finds them charged. Raises StripeUnavailable and Unavailable.
        """
        return await self._settle_slices(account_id, subscription_id) + await self._settle_items(
            account_id, subscription_id
        )

    async def _settle_slices(self, account_id: str, subscription_id: str) -> int:
        sent = await self._database.read(lambda conn: _sent(conn, account_id, subscription_id))
        if not sent:
            return 0
        since = min(one.reported_for for one in sent)
        charged: list[client.Data] = []
        for invoice in await self._stripe.invoices_of_subscription(subscription_id, since):
            if invoice["status"] != "void":
                charged += await self._stripe.all_invoice_lines(invoice)
        prices = {
            name: await self._database.read(lambda conn, name=name: store.price_ids(conn, name))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            for name in {one.stripe_event_name for one in sent}
        }
        unbilled = [one for one in sent if not _is_charged(one, charged, prices[one.stripe_event_name])]
        if unbilled:
            _log.warning(
                "usage_without_invoice", account=account_id, subscription=subscription_id, slices=len(unbilled)
            )
            change = states.unbilled(self._clock.now(), "no invoice of its subscription charges it")
            await self._reopen(unbilled, change, "usage.report_unbilled")
        return len(unbilled)

    async def _settle_items(self, account_id: str, subscription_id: str) -> int:
        """Let items that waited for the subscription's next invoice, which will not come, have one of their own."""
        left: list[rules.UsageReport] = []
        for one in await self._database.read(lambda conn: _waiting(conn, account_id, subscription_id)):
            # What was taken away at Stripe was taken away by somebody there.
            with contextlib.suppress(client.NotAtStripe):
                item = await self._stripe.invoice_item(str(one.invoice_item_id))
                if not item.get("invoice"):
                    left.append(one)
        if left:
            _log.warning("items_without_invoice", account=account_id, subscription=subscription_id, items=len(left))
            await self._reopen(left, states.uninvoiced(self._clock.now()), "usage.item_uninvoiced")
        return len(left)

    async def _reopen(self, reports: Sequence[rules.UsageReport], change: states.Change, action: str) -> None:
        now = self._clock.now()

        async def reopen(conn: AsyncConnection) -> None:
            for one in reports:
                if await store.write(conn, one, change):
                    changes = {"report": one.report_id, "meter": one.meter, "units": one.units}
                    await audit_store.append(conn, _ORIGIN, one.account_id, action, changes, now)

        await self._database.run(reopen)


async def _sent(conn: AsyncConnection, account_id: str, subscription_id: str) -> list[rules.UsageReport]:
    """Return what was sent for the subscription's last billing period; what was used in a trial is free."""
    held = await store.subscriptions(conn, account_id)
    row = next((one for one in held if one.subscription_id == subscription_id), None)
    if row is None:
        return []
    since = row.billing_period_start if row.trial_end is None else max(row.billing_period_start, row.trial_end)
    return [
        one
        for one in await store.all_of_account(conn, account_id, row.billing_period_start - _PERIODS_APART_MAX)
        if one.subscription_id == subscription_id and one.state is states.ReportState.SENT and one.reported_for >= since
    ]


async def _waiting(conn: AsyncConnection, account_id: str, subscription_id: str) -> list[rules.UsageReport]:
    """Return the slices whose items may have waited for an invoice of the subscription, if nothing else brings one."""
    held = await store.subscriptions(conn, account_id)
    row = next((one for one in held if one.subscription_id == subscription_id), None)
    if row is None or store.will_be_invoiced(held, row.customer_id):
        return []
    # What was an item before its last period began is on the invoice with which it began.
    return await store.itemised_since(conn, account_id, row.customer_id, row.billing_period_start)


def _is_charged(report: rules.UsageReport, lines: Sequence[client.Data], price_ids: Collection[str]) -> bool:
    """Say whether a line charges what the slice's meter added up at the time that the slice is stamped with."""
    at = report.reported_for.timestamp()
    # The second of the end is the last one of a subscription that ends at once.
    return any(
        parse.price_of_line(line) in price_ids and line["period"]["start"] <= at <= line["period"]["end"]
        for line in lines
    )
