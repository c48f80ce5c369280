"""The usage half of a reconciliation: what was recorded, what we say that we sent, and what Stripe has."""

import enum
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import clock, errors
from billing_svc.audit import store as audit_store
from billing_svc.catalog import versions
from billing_svc.database import transactions
from billing_svc.stripe import client
from billing_svc.subscriptions import rules as subscriptions_rules
from billing_svc.usage_reports import counters, flushing, judging, retrying, rules, store

# Older periods are paid for and closed; a drift of theirs was shown when they were not.
LOOKED_BACK = timedelta(days=65)
ACCOUNTS_PAGE = 100
# An invoice is final by then, and nothing of its period is on the way any more.
SETTLED_AFTER = timedelta(hours=3)
_MINUTE = timedelta(minutes=1)


class Kind(enum.StrEnum):
    """What does not agree."""

    UNSEALED = "unsealed"  # billable units that are in no slice
    SLICES = "slices"  # slices that do not add up to what is sealed
    NOT_SENT = "not_sent"  # slices of a past period that Stripe does not have yet
    FAILED = "failed"  # slices that Stripe refused or lost
    METER = "meter"  # the meter has other units than it was sent
    ITEM = "item"  # an invoice item that is not there, has another amount, or is on no invoice to come
    LINE = "line"  # an invoice charges other units than its meter was sent


@dataclass(frozen=True, slots=True)
class Drift:
    """One disagreement about a counter: `ours` and `theirs` in units, of an item in minor units."""

    kind: Kind
    account_id: str
    meter: str
    period_start: datetime
    ours: int
    theirs: int
    detail: str
    event_name: str = ""
    report_id: str = ""


@dataclass(frozen=True, slots=True)
class _Books:
    """All that is stored of an account."""

    account_id: str
    totals: Sequence[counters.Counter]
    reports: Sequence[rules.Report]
    subscriptions: Sequence[store.SubscriptionRow]

    def was_trial(self, counter: counters.Counter) -> bool:
        return any(
            one.trial_end is not None
            and one.effective_from < counter.period_end
            and counter.period_start < one.trial_end
            for one in self.subscriptions
        )

    def of(self, counter: counters.Counter) -> list[rules.Report]:
        return [one for one in self.reports if (one.meter, one.period_start) == (counter.meter, counter.period_start)]


class Reconciliation:
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
        self._flush = flushing.Flush(database, catalogs, stripe, now)

    async def compare(self, account_ids: Sequence[str] | None = None) -> list[Drift]:
        """Return what does not agree, for some accounts or for all. Raises StripeUnavailable and Unavailable."""
        meters = {one["event_name"]: str(one["id"]) for one in await self._stripe.meters()}
        drifts: list[Drift] = []
        for account_id in await self._accounts() if account_ids is None else account_ids:
            drifts += await self._compare_account(account_id, meters)
        return drifts

    async def fix(self, drifts: Sequence[Drift], origin: audit_store.Origin) -> list[Drift]:
        """Mend what can be, and return what is left afterwards of the same accounts."""
        accounts = list(dict.fromkeys(one.account_id for one in drifts))
        for drift in drifts:
            match drift.kind:
                case Kind.METER if drift.theirs < drift.ours:
                    await self._reopen_missing(drift, origin)
                case Kind.LINE if drift.theirs < drift.ours:
                    await self._charge_unbilled(drift, origin)
                case _:
                    pass
        for account_id in accounts:
            now = self._clock.now()
            await self._database.run(
                lambda conn, one=account_id, now=now: retrying.retry_all(conn, one, origin, now)  # type: ignore[misc]
            )
            try:
                await self._flush.flush(account_id)
            except errors.UsageNotReported:
                continue  # the comparison below shows it
        return await self.compare(accounts)

    async def _accounts(self) -> list[str]:
        since = self._clock.now() - LOOKED_BACK
        found: list[str] = []
        while True:
            after = found[-1] if found else ""
            page = await self._database.read(
                lambda conn, after=after: counters.billed_accounts(conn, after, ACCOUNTS_PAGE, since)  # type: ignore[misc]
            )
            found += page
            if len(page) < ACCOUNTS_PAGE:
                return found

    async def _read(self, account_id: str) -> _Books:
        since = self._clock.now() - LOOKED_BACK

        async def read(conn: AsyncConnection) -> _Books:
            return _Books(
                account_id,
                [one for one in await counters.billed(conn, account_id) if one.period_start >= since],
                await store.all_of_account(conn, account_id, since),
                await store.subscriptions(conn, account_id),
            )

        return await self._database.run(read)

    async def _compare_account(self, account_id: str, meters: Mapping[str, str]) -> list[Drift]:
        books = await self._read(account_id)
        now = self._clock.now()
        drifts: list[Drift] = []
        for counter in books.totals:
            own = books.of(counter)
            drifts += _within(counter, own, now)
            names = list(dict.fromkeys((one.customer_id, one.stripe_event_name) for one in own))
            for customer_id, name in names:
                sent = [one for one in own if (one.customer_id, one.stripe_event_name) == (customer_id, name)]
                drifts += await self._compare_meter(counter, sent, meters.get(name))
                if not books.was_trial(counter):  # what is used in a trial is on no invoice
                    drifts += await self._compare_lines(counter, sent, now)
            drifts += await self._compare_items(counter, own, books)
        return drifts

    async def _compare_meter(
        self, counter: counters.Counter, own: Sequence[rules.Report], meter_id: str | None
    ) -> list[Drift]:
        """Compare whole minutes, whosever period their slices are of: at a period's bound two share a minute."""
        minutes = [one.minute for one in own if one.state == "sent" or one.first_attempt_at is not None]
        if not minutes:
            return []
        start, end = min(minutes), max(minutes) + _MINUTE
        ours = await self._database.read(lambda conn: store.sent_between(conn, own[0], start, end))
        theirs = 0
        if meter_id is not None:
            theirs = await self._stripe.meter_total(meter_id, own[0].customer_id, start, end)
        # What is on its way may be there already.
        unknown = [one.units for one in own if one.state == "sealed" and one.first_attempt_at is not None]
        if theirs in {ours, ours + sum(unknown)}:
            return []
        detail = f"the meter {own[0].stripe_event_name} was sent {ours} units and has {theirs}"
        return [_drift(Kind.METER, counter, ours, theirs, detail, event_name=own[0].stripe_event_name)]

    async def _compare_lines(
        self, counter: counters.Counter, own: Sequence[rules.Report], now: datetime
    ) -> list[Drift]:
        """Compare a settled period's slices with the lines of the invoices that charge it."""
        subscription_id, name = own[0].subscription_id, own[0].stripe_event_name
        is_settled = all(one.state in {"sent", "invoiced", "void"} for one in own) and all(
            now >= one.period_end + SETTLED_AFTER for one in own
        )
        if subscription_id is None or not is_settled or any(one.subscription_id != subscription_id for one in own):
            return []
        price_ids = await self._database.read(lambda conn: store.price_ids(conn, name))
        theirs = 0
        for invoice in await self._stripe.invoices_of_subscription(subscription_id, counter.period_start):
            if invoice["status"] not in {"draft", "void"}:
                theirs += sum(_units(line, price_ids, counter) for line in await self._lines(invoice))
        ours = max(0, sum(one.units for one in own if one.state == "sent"))
        if theirs == ours:
            return []
        detail = f"the invoices of {subscription_id} charge {theirs} units of the {ours} that {name} was sent"
        return [_drift(Kind.LINE, counter, ours, theirs, detail, event_name=name)]

    async def _lines(self, invoice: client.Data) -> list[client.Data]:
        page = invoice["lines"]
        lines = list(page["data"])
        while page["has_more"]:
            page = await self._stripe.invoice_lines(str(invoice["id"]), str(lines[-1]["id"]))
            lines += page["data"]
        return lines

    async def _compare_items(
        self, counter: counters.Counter, own: Iterable[rules.Report], books: _Books
    ) -> list[Drift]:
        drifts = []
        for report in own:
            if report.invoice_item_id is None or report.state != "invoiced":
                continue
            ours, about = report.amount or 0, {"event_name": report.stripe_event_name, "report_id": report.report_id}
            try:
                item = await self._stripe.invoice_item(report.invoice_item_id)
            except client.NotAtStripe:
                detail = f"Stripe has no invoice item {report.invoice_item_id}"
                drifts.append(_drift(Kind.ITEM, counter, ours, 0, detail, **about))
                continue
            if item["amount"] != ours:
                detail = f"invoice item {report.invoice_item_id} has another amount"
                drifts.append(_drift(Kind.ITEM, counter, ours, int(item["amount"]), detail, **about))
            elif not item.get("invoice") and not any(
                one.customer_id == report.customer_id and one.status in subscriptions_rules.GIVING
                for one in books.subscriptions
            ):
                detail = f"invoice item {report.invoice_item_id} is on no invoice, and none will come"
                drifts.append(_drift(Kind.ITEM, counter, ours, 0, detail, **about))
        return drifts

    async def _reopen_missing(self, drift: Drift, origin: audit_store.Origin) -> None:
        """Take those slices for lost that a minute's sum lacks, if it is plain which ones they are."""
        meters = {one["event_name"]: str(one["id"]) for one in await self._stripe.meters()}
        meter_id = meters.get(drift.event_name)
        minutes: dict[datetime, list[rules.Report]] = {}
        for one in (await self._read(drift.account_id)).reports:
            if one.stripe_event_name == drift.event_name and one.state == "sent":
                minutes.setdefault(one.minute, []).append(one)
        for minute, reports in minutes.items():
            if max(one.last_attempt_at or minute for one in reports) + judging.SUMS_LAG_MAX > self._clock.now():
                continue  # it may yet appear
            total = 0
            if meter_id is not None:
                total = await self._stripe.meter_total(meter_id, reports[0].customer_id, minute, minute + _MINUTE)
            missing = sum(one.units for one in reports) - total
            lost = reports if total == 0 else [one for one in reports if one.units == missing]
            if missing and sum(one.units for one in lost) == missing:
                values = {"state": "failed", "error": "its meter does not have it", "first_attempt_at": None}
                await self._change(lost, values, "usage.report_failed", origin)

    async def _charge_unbilled(self, drift: Drift, origin: audit_store.Origin) -> None:
        """Charge by invoice items what reached its meter and is on no invoice: the newest slices that come to it."""
        unbilled, left = [], drift.ours - drift.theirs
        for one in reversed((await self._read(drift.account_id)).reports):
            is_of = (one.meter, one.period_start, one.stripe_event_name, one.state) == (
                drift.meter,
                drift.period_start,
                drift.event_name,
                "sent",
            )
            if is_of and left:
                unbilled.append(one)
                left -= one.units
        if left == 0:
            now = self._clock.now()
            values = {"state": "late", "error": "its invoice does not charge it", "next_attempt_at": now}
            await self._change(unbilled, {**values, "closed_at": None}, "usage.report_unbilled", origin)

    async def _change(
        self, reports: Sequence[rules.Report], values: Mapping[str, Any], action: str, origin: audit_store.Origin
    ) -> None:
        now = self._clock.now()

        async def change(conn: AsyncConnection) -> None:
            for one in reports:
                if await store.write(conn, one, values):
                    changes = {"report": one.report_id, "meter": one.meter, "units": one.units}
                    await audit_store.append(conn, origin, one.account_id, action, changes, now)

        await self._database.run(change)


def _within(counter: counters.Counter, own: Sequence[rules.Report], now: datetime) -> list[Drift]:
    """Compare our own tables."""
    drifts = []
    total = sum(one.units for one in own)
    if counter.billable != counter.sealed:
        detail = f"{counter.billable - counter.sealed} billable units are in no slice yet"
        drifts.append(_drift(Kind.UNSEALED, counter, counter.billable, counter.sealed, detail))
    if total != counter.sealed or any(after.from_units != before.to_units for before, after in itertools.pairwise(own)):
        detail = f"the slices add up to {total}"
        drifts.append(_drift(Kind.SLICES, counter, counter.sealed, total, detail))
    is_past = now >= counter.period_end + SETTLED_AFTER
    for one in own:
        about = {"event_name": one.stripe_event_name, "report_id": one.report_id}
        if one.state == "failed":
            drifts.append(_drift(Kind.FAILED, counter, one.units, 0, one.error or "", **about))
        elif one.state in {"sealed", "late", "itemised"} and is_past:
            detail = one.error or f"{one.state} since {one.sealed_at.isoformat(timespec='minutes')}"
            drifts.append(_drift(Kind.NOT_SENT, counter, one.units, 0, detail, **about))
    return drifts


def _units(line: Mapping[str, Any], price_ids: Collection[str], counter: counters.Counter) -> int:
    """Return the units of a counter that an invoice's line charges."""
    details = (line.get("pricing") or {}).get("price_details") or {}
    starts = int(line["period"]["start"])
    is_of = int(counter.period_start.timestamp()) <= starts < counter.period_end.timestamp()
    return int(line.get("quantity") or 0) if details.get("price") in price_ids and is_of else 0


def _drift(
    kind: Kind,
    counter: counters.Counter,
    ours: int,
    theirs: int,
    detail: str,
    *,
    event_name: str = "",
    report_id: str = "",
) -> Drift:
    return Drift(
        kind, counter.account_id, counter.meter, counter.period_start, ours, theirs, detail, event_name, report_id
    )
