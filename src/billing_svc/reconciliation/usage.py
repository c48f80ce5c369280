"""The usage half of a reconciliation: what was recorded, what we say that we sent, and what Stripe has.

`drifts` has the kinds of what is found, `mending` what can be done about it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.reconciliation import discrepancies, repair
from billing_svc.stripe import client, parse
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.usage_export import counters, rules, states, store

ACCOUNTS_PAGE = 100
# A line may charge slices of the quota period before the one that it ends in.
_PERIOD_MAX = timedelta(days=32)
_MINUTE = timedelta(minutes=1)
# It needs nothing more, so the period's invoices say what was charged.
_SETTLED = (states.ReportState.SENT, states.ReportState.INVOICED, states.ReportState.VOID)


@dataclass(frozen=True, slots=True)
class _AccountUsage:
    """All that is stored of an account."""

    account_id: str
    totals: Sequence[counters.UnreportedCounter]
    reports: Sequence[rules.UsageReport]
    subscriptions: Sequence[store.BillableSubscription]

    def was_trial(self, counter: counters.UnreportedCounter) -> bool:
        return any(
            one.trial_end is not None
            and one.effective_from < counter.period_end
            and counter.period_start < one.trial_end
            for one in self.subscriptions
        )

    def is_superfluous(self, subscription_id: str | None) -> bool:
        """Say whether a subscription was bought beside another: that one's invoices charge what was used under it."""
        return any(one.superfluous and one.subscription_id == subscription_id for one in self.subscriptions)

    def is_open_at(self, subscription_id: str) -> Callable[[datetime], bool]:
        """Return what says of an instant whether it lies in the period that the subscription has not invoiced yet."""
        row = next((one for one in self.subscriptions if one.subscription_id == subscription_id), None)
        if row is None or row.status in stripe_subscriptions.OVER:
            return lambda _at: False
        return lambda at: row.billing_period_start <= at < row.billing_period_end

    def sent(self, subscription_id: str, name: str) -> list[rules.UsageReport]:
        """Return what one meter of a subscription was sent, in whatever quota periods."""
        return [
            one
            for one in self.reports
            if (one.subscription_id, one.stripe_event_name, one.state)
            == (subscription_id, name, states.ReportState.SENT)
        ]

    def of(self, counter: counters.UnreportedCounter) -> list[rules.UsageReport]:
        return [one for one in self.reports if (one.meter, one.period_start) == (counter.meter, counter.period_start)]


class UsageReconciliation:
    """Compares usage with Stripe, and mends what can be mended without a person's judgement."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._stripe = stripe
        self._clock = now
        self._mending = repair.Repair(database, catalogs, stripe, now)

    async def compare(self, account_ids: Sequence[str] | None = None) -> list[discrepancies.UsageDiscrepancy]:
        """Return what does not agree, for some accounts or for all. Raises StripeUnavailable and Unavailable."""
        meters = await self._stripe.meter_ids()
        found: list[discrepancies.UsageDiscrepancy] = []
        for account_id in await self._accounts() if account_ids is None else account_ids:
            found += await self._compare_account(account_id, meters)
        return found

    async def fix(
        self, found: Sequence[discrepancies.UsageDiscrepancy], origin: audit_store.Origin
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Mend what can be, and return what is left afterwards of the same accounts."""
        accounts = list(dict.fromkeys(one.account_id for one in found))
        await self._mending.mend(found, origin)
        return await self.compare(accounts)

    async def _accounts(self) -> list[str]:
        since = self._clock.now() - discrepancies.LOOKED_BACK
        found: list[str] = []
        while True:
            after = found[-1] if found else ""
            page = await self._database.read(
                lambda conn, after=after: counters.billed_accounts(conn, after, ACCOUNTS_PAGE, since)  # type: ignore[misc]
            )
            found += page
            if len(page) < ACCOUNTS_PAGE:
                return found

    async def _read(self, account_id: str) -> _AccountUsage:
        since = self._clock.now() - discrepancies.LOOKED_BACK

        async def read(conn: AsyncConnection) -> _AccountUsage:
            return _AccountUsage(
                account_id,
                [one for one in await counters.billed(conn, account_id) if one.period_start >= since],
                await store.all_of_account(conn, account_id, since - _PERIOD_MAX),
                await store.subscriptions(conn, account_id),
            )

        return await self._database.run(read)

    async def _compare_account(
        self, account_id: str, meters: Mapping[str, Sequence[str]]
    ) -> list[discrepancies.UsageDiscrepancy]:
        books = await self._read(account_id)
        now = self._clock.now()
        found: list[discrepancies.UsageDiscrepancy] = []
        for counter in books.totals:
            own = books.of(counter)
            found += discrepancies.within(counter, own, now)
            names = list(dict.fromkeys((one.customer_id, one.stripe_event_name) for one in own))
            for customer_id, name in names:
                sent = [one for one in own if (one.customer_id, one.stripe_event_name) == (customer_id, name)]
                found += await self._compare_meter(counter, sent, meters.get(name, []))
                # What is used in a trial is on no invoice.
                if not books.was_trial(counter) and not books.is_superfluous(sent[0].subscription_id):
                    found += await self._compare_lines(counter, sent, books, now)
            found += await self._compare_items(counter, own, books)
        return found

    async def _compare_meter(
        self, counter: counters.UnreportedCounter, own: Sequence[rules.UsageReport], meter_ids: Sequence[str]
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Compare whole minutes, whosever period their slices are of: at a period's bound two share a minute."""
        minutes = [
            one.minute for one in own if one.state is states.ReportState.SENT or one.first_attempt_at is not None
        ]
        if not minutes:
            return []
        start, end = min(minutes), max(minutes) + _MINUTE
        ours = await self._database.read(lambda conn: store.sent_between(conn, own[0], start, end))
        theirs = await self._stripe.meter_total(meter_ids, own[0].customer_id, start, end)
        # What is on its way may be there already.
        unknown = [
            one.units for one in own if one.state is states.ReportState.SEALED and one.first_attempt_at is not None
        ]
        if theirs in {ours, ours + sum(unknown)}:
            return []
        detail = f"the meter {own[0].stripe_event_name} was sent {ours} units and has {theirs}"
        return [
            discrepancies.of(
                discrepancies.DiscrepancyKind.METER, counter, ours, theirs, detail, event_name=own[0].stripe_event_name
            )
        ]

    async def _compare_lines(
        self, counter: counters.UnreportedCounter, own: Sequence[rules.UsageReport], books: _AccountUsage, now: datetime
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Compare a settled period's slices with the lines of the invoices that charge it."""
        subscription_id, name = own[0].subscription_id, own[0].stripe_event_name
        is_settled = all(one.state in _SETTLED for one in own) and all(
            now >= one.period_end + discrepancies.SETTLED_AFTER for one in own
        )
        if subscription_id is None or not is_settled or any(one.subscription_id != subscription_id for one in own):
            return []
        price_ids = await self._database.read(lambda conn: store.price_ids(conn, name))
        lines: list[discrepancies.DiscrepancyKey] = []
        for invoice in await self._stripe.invoices_of_subscription(subscription_id, counter.period_start):
            # A draft that is this old waits for a person, as those of an unpaid subscription do; its lines are counted.
            if invoice["status"] != "void":
                lines += [
                    _line(one)
                    for one in await self._stripe.all_invoice_lines(invoice)
                    if parse.price_of_line(one) in price_ids
                ]
        sent = books.sent(subscription_id, name)
        ours, theirs = discrepancies.invoiced(counter, sent, lines, books.is_open_at(subscription_id))
        if theirs == ours:
            return []
        detail = f"the invoices of {subscription_id} charge {theirs} units of the {ours} that {name} was sent"
        return [discrepancies.of(discrepancies.DiscrepancyKind.LINE, counter, ours, theirs, detail, event_name=name)]

    async def _compare_items(
        self, counter: counters.UnreportedCounter, own: Iterable[rules.UsageReport], books: _AccountUsage
    ) -> list[discrepancies.UsageDiscrepancy]:
        found = []
        for report in own:
            if report.invoice_item_id is None or report.state is not states.ReportState.INVOICED:
                continue
            ours, about = report.amount or 0, {"event_name": report.stripe_event_name, "report_id": report.report_id}
            try:
                item = await self._stripe.invoice_item(report.invoice_item_id)
            except client.NotAtStripe:
                detail = f"Stripe has no invoice item {report.invoice_item_id}"
                found.append(discrepancies.of(discrepancies.DiscrepancyKind.ITEM, counter, ours, 0, detail, **about))
                continue
            if item["amount"] != ours:
                detail = f"invoice item {report.invoice_item_id} has another amount"
                found.append(
                    discrepancies.of(
                        discrepancies.DiscrepancyKind.ITEM, counter, ours, int(item["amount"]), detail, **about
                    )
                )
            elif not item.get("invoice") and not store.will_be_invoiced(books.subscriptions, report.customer_id):
                detail = f"invoice item {report.invoice_item_id} is on no invoice, and none will come"
                found.append(
                    discrepancies.of(discrepancies.DiscrepancyKind.UNINVOICED, counter, ours, 0, detail, **about)
                )
        return found


def _line(line: Mapping[str, Any]) -> discrepancies.DiscrepancyKey:
    start, end = (datetime.fromtimestamp(line["period"][bound], UTC) for bound in ("start", "end"))
    return discrepancies.DiscrepancyKey(start, end, int(line.get("quantity") or 0))
