"""Compares usage: the recorded units, the reports that were sent, and what Stripe's meters and invoices have.

`discrepancies` has the kinds of discrepancies, `repair` their repair.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.reconciliation import discrepancies, repair, store
from billing_svc.stripe import client, parse, subscription_records
from billing_svc.usage_export import billed_lines, charge_unbilled, charged_units, counters, rules, states
from billing_svc.usage_export import store as reports_store

ACCOUNTS_PAGE = 100
# A line may charge reports of the quota period before the quota period in which it ends.
_PERIOD_MAX = timedelta(days=32)
_MINUTE = timedelta(minutes=1)
# Final states: the period's invoices show what was charged.
_SETTLED = (states.ReportState.SENT, states.ReportState.INVOICED, states.ReportState.VOID)


@dataclass(frozen=True, slots=True)
class _AccountUsage:
    """Everything that is stored about an account's usage."""

    account_id: str
    totals: Sequence[counters.UnreportedCounter]
    reports: Sequence[rules.UsageReport]
    subscriptions: Sequence[subscription_records.SubscriptionRecord]
    # What the invoices of a subscription charge, by price; fetched once.
    lines: dict[str, dict[str, list[charged_units.Line]]] = field(default_factory=dict)

    def was_trial(self, counter: counters.UnreportedCounter) -> bool:
        return any(
            record.had_trial_between(
                counter.period_start,
                min(counter.period_end, record.stretch_end(counter.period_start) or counter.period_end),
            )
            for record in self.subscriptions
        )

    def is_superfluous(self, subscription_id: str | None) -> bool:
        """Say whether a subscription is superfluous: its usage is charged by the account's other subscription."""
        return any(record.superfluous and record.subscription_id == subscription_id for record in self.subscriptions)

    def subscription(self, subscription_id: str) -> subscription_records.SubscriptionRecord | None:
        return next((record for record in self.subscriptions if record.subscription_id == subscription_id), None)

    def sent(self, subscription_id: str, name: str) -> list[rules.UsageReport]:
        """Return the reports that were sent to a meter of a subscription, in all quota periods."""
        return [
            report
            for report in self.reports
            if (report.subscription_id, report.stripe_event_name, report.state)
            == (subscription_id, name, states.ReportState.SENT)
        ]

    def of(self, counter: counters.UnreportedCounter) -> list[rules.UsageReport]:
        return [
            report
            for report in self.reports
            if (report.meter, report.period_start) == (counter.meter, counter.period_start)
        ]


class UsageReconciliation:
    """Compares usage with Stripe, and repairs what needs no person's judgement."""

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
        self._repair = repair.Repair(database, catalogs, stripe, now)

    async def compare(
        self,
        account_ids: Sequence[str] | None = None,
        since: datetime | None = None,
        compared: Callable[[], None] = lambda: None,
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Return the discrepancies of some accounts, or of all.

        Compared are the quota periods that began at `since` or later, and the older ones that are not settled.
        `compared` is called after each account. Raises StripeUnavailable and Unavailable.
        """
        since = since or self._clock.now() - discrepancies.LOOKED_BACK
        account_ids = await self.accounts(since) if account_ids is None else account_ids
        meters = await self._stripe.meter_ids()
        found: list[discrepancies.UsageDiscrepancy] = []
        for account_id in account_ids:
            found += await self._compare_account(account_id, meters, since)
            compared()
        return found

    async def fix(
        self,
        found: Sequence[discrepancies.UsageDiscrepancy],
        origin: audit_store.Origin,
        since: datetime | None = None,
        did: Callable[[repair.Done], None] = lambda _done: None,
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Repair what can be repaired, and return the discrepancies that remain in the same accounts.

        `did` is told each thing that was done.
        """
        accounts = list(dict.fromkeys(discrepancy.account_id for discrepancy in found))
        await self._repair.mend(found, origin, did)
        return await self.compare(accounts, since)

    async def accounts(self, since: datetime) -> list[str]:
        """Return the accounts to compare, sorted: with usage to charge since an instant, or with unsettled usage."""
        unsettled = await self._database.read(store.unsettled_accounts)
        return sorted({*unsettled, *await self._billed_accounts(since)})

    async def _billed_accounts(self, since: datetime) -> list[str]:
        found: list[str] = []
        while True:
            after = found[-1] if found else ""
            page = await self._database.read(
                lambda conn, after=after: counters.billed_accounts(conn, after, ACCOUNTS_PAGE, since)  # type: ignore[misc]
            )
            found += page
            if len(page) < ACCOUNTS_PAGE:
                return found

    async def _read(self, account_id: str, since: datetime) -> _AccountUsage:
        async def read(conn: AsyncConnection) -> _AccountUsage:
            start = await store.compared_since(conn, account_id, since)
            return _AccountUsage(
                account_id,
                [counter for counter in await counters.billed(conn, account_id) if counter.period_start >= start],
                await reports_store.all_of_account(conn, account_id, start - _PERIOD_MAX),
                await subscription_records.of_account(conn, account_id),
            )

        return await self._database.run(read)

    async def _compare_account(
        self, account_id: str, meters: Mapping[str, Sequence[str]], since: datetime
    ) -> list[discrepancies.UsageDiscrepancy]:
        account_usage = await self._read(account_id, since)
        now = self._clock.now()
        found: list[discrepancies.UsageDiscrepancy] = []
        for counter in account_usage.totals:
            own = account_usage.of(counter)
            found += discrepancies.within(counter, own, now)
            try:
                found += await self._compare_with_stripe(counter, own, account_usage, meters, now)
            except errors.StripeObjectUnreadable as error:
                found.append(discrepancies.of(discrepancies.DiscrepancyKind.UNREADABLE, counter, 0, 0, error.message))
        return found

    async def _compare_with_stripe(
        self,
        counter: counters.UnreportedCounter,
        own: Sequence[rules.UsageReport],
        account_usage: _AccountUsage,
        meters: Mapping[str, Sequence[str]],
        now: datetime,
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Compare a counter's reports with Stripe's meters, invoices and items. Raises StripeObjectUnreadable."""
        found: list[discrepancies.UsageDiscrepancy] = []
        names = list(dict.fromkeys((report.customer_id, report.stripe_event_name) for report in own))
        for customer_id, name in names:
            sent = [report for report in own if (report.customer_id, report.stripe_event_name) == (customer_id, name)]
            found += await self._compare_meter(counter, sent, meters.get(name, []))
            # Usage in a trial is on no invoice.
            if not account_usage.was_trial(counter) and not account_usage.is_superfluous(sent[0].subscription_id):
                found += await self._compare_lines(counter, sent, account_usage, now)
        return found + await self._compare_items(counter, own, account_usage)

    async def _compare_meter(
        self, counter: counters.UnreportedCounter, own: Sequence[rules.UsageReport], meter_ids: Sequence[str]
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Compare whole minutes, with reports of all periods: at a bound, two periods share a minute."""
        minutes = [
            report.minute
            for report in own
            if report.state is states.ReportState.SENT or report.first_attempt_at is not None
        ]
        if not minutes:
            return []
        start, end = min(minutes), max(minutes) + _MINUTE
        ours = await self._database.read(lambda conn: reports_store.sent_between(conn, own[0], start, end))
        theirs = await self._stripe.meter_total(meter_ids, own[0].customer_id, start, end)
        # Events with an unknown outcome may have arrived.
        unknown = [
            report.units
            for report in own
            if report.state is states.ReportState.SEALED and report.first_attempt_at is not None
        ]
        if theirs in {ours, ours + sum(unknown)}:
            return []
        detail = f"the meter {own[0].stripe_event_name} has {theirs} units, but {ours} were sent to it"
        return [
            discrepancies.of(
                discrepancies.DiscrepancyKind.METER, counter, ours, theirs, detail, event_name=own[0].stripe_event_name
            )
        ]

    async def _compare_lines(
        self,
        counter: counters.UnreportedCounter,
        own: Sequence[rules.UsageReport],
        account_usage: _AccountUsage,
        now: datetime,
    ) -> list[discrepancies.UsageDiscrepancy]:
        """Compare a settled period's reports with the lines of the invoices that charge them."""
        subscription_id, name = own[0].subscription_id, own[0].stripe_event_name
        is_settled = all(report.state in _SETTLED for report in own) and all(
            now >= report.period_end + discrepancies.SETTLED_AFTER for report in own
        )
        if (
            subscription_id is None
            or not is_settled
            or any(report.subscription_id != subscription_id for report in own)
        ):
            return []
        row = account_usage.subscription(subscription_id)
        if row is None:
            return []
        sent = account_usage.sent(subscription_id, name)
        if subscription_id not in account_usage.lines:
            account_usage.lines[subscription_id] = await billed_lines.of_subscription(
                self._stripe,
                subscription_id,
                row.customer_id,
                min(report.period_start for report in account_usage.reports),
                is_over=row.is_over,
            )
        price_ids = await self._database.read(lambda conn: reports_store.price_ids(conn, name))
        found = account_usage.lines[subscription_id]
        units = [charge_unbilled.sent_units(row, report, is_open=_is_open(row, report)) for report in sent]
        comparison = charged_units.compare(units, [line for key in price_ids for line in found.get(key, ())])
        return discrepancies.invoiced(counter, own, sent, comparison)

    async def _compare_items(
        self, counter: counters.UnreportedCounter, own: Iterable[rules.UsageReport], account_usage: _AccountUsage
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
            theirs = parse.StripeFields.of(item, "invoice item").whole("amount")
            if theirs != ours:
                detail = f"invoice item {report.invoice_item_id} has another amount"
                found.append(
                    discrepancies.of(discrepancies.DiscrepancyKind.ITEM, counter, ours, theirs, detail, **about)
                )
            elif not item.get("invoice") and not reports_store.will_be_invoiced(
                _invoicing(item, account_usage.subscriptions), report.customer_id
            ):
                detail = f"invoice item {report.invoice_item_id} is on no invoice, and no invoice will take it"
                found.append(
                    discrepancies.of(discrepancies.DiscrepancyKind.UNINVOICED, counter, ours, 0, detail, **about)
                )
        return found


def _invoicing(
    item: Mapping[str, Any], held: Sequence[subscription_records.SubscriptionRecord]
) -> Sequence[subscription_records.SubscriptionRecord]:
    """Return the subscriptions whose invoices may take an item: all, or the single one that the item names."""
    named = parse.nested(item, "parent", "subscription_details", "subscription") or item.get("subscription")
    subscription_id = parse.optional_id(named)
    return [record for record in held if subscription_id in {None, record.subscription_id}]


def _is_open(row: subscription_records.SubscriptionRecord, report: rules.UsageReport) -> bool:
    """Say whether a report is in the billing period that is not invoiced yet."""
    return not row.is_over and row.in_billing_period(charge_unbilled.sent_units(row, report, is_open=False).at)
