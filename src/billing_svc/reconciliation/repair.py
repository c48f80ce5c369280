"""Repairs usage discrepancies, if that needs no person's judgement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.reconciliation import discrepancies, money_of
from billing_svc.stripe import client
from billing_svc.usage_export import billability, export_now, retry_failed, rules, states, store

_MINUTE = timedelta(minutes=1)
_ITEM_STATES = (states.ReportState.ITEMISED, states.ReportState.INVOICED)


@dataclass(frozen=True, slots=True)
class Done:
    """What a repair did; `amount` is the money that it charges, in minor units of `currency`."""

    kind: str
    account_id: str
    about: str
    detail: str
    amount: int | None = None
    currency: str | None = None


class Repair:
    """Sends or charges again what Stripe lacks."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._clock = now
        # The ids of the reports that this repair has changed.
        self._changed: set[str] = set()
        self._flush = export_now.ExportNow(database, catalogs, stripe, now)

    async def mend(
        self, found: Sequence[discrepancies.UsageDiscrepancy], origin: audit_store.Origin, did: Callable[[Done], None]
    ) -> None:
        """Repair what can be repaired; the next comparison reports the rest.

        `did` is told each thing that was done, also if the repair fails in the middle.
        """
        since = {account_id: _since(found, account_id) for account_id in {one.account_id for one in found}}
        before = {
            (report.account_id, report.report_id): report
            for account_id, start in since.items()
            for report in await self._reports(account_id, start)
        }
        self._changed.clear()
        try:
            await self._repair(found, origin)
        finally:
            for account_id, start in sorted(since.items()):
                for report in await self._reports(account_id, start):
                    was = before.get((account_id, report.report_id))
                    if report.report_id in self._changed or not _is_same(was, report):
                        did(await self._done(was, report))

    async def _repair(self, found: Sequence[discrepancies.UsageDiscrepancy], origin: audit_store.Origin) -> None:
        for discrepancy in found:
            match discrepancy.kind:
                case discrepancies.DiscrepancyKind.METER if discrepancy.theirs < discrepancy.ours:
                    await self._reopen_missing(discrepancy, origin)
                case discrepancies.DiscrepancyKind.LINE:
                    await self._charge_unbilled(discrepancy, origin)
                case discrepancies.DiscrepancyKind.UNINVOICED:
                    await self._invoice_alone(discrepancy, origin)
                case _:
                    pass
        for account_id in dict.fromkeys(discrepancy.account_id for discrepancy in found):
            now = self._clock.now()
            await self._database.run(
                lambda conn, account_id=account_id, now=now: retry_failed.retry_all(conn, account_id, origin, now)  # type: ignore[misc]
            )
            try:
                await self._flush.flush(account_id)
            except errors.UsageNotReported:
                continue  # the next comparison reports it

    async def _reports(self, account_id: str, since: datetime) -> list[rules.UsageReport]:
        return await self._database.read(lambda conn: store.all_of_account(conn, account_id, since))

    async def _done(self, before: rules.UsageReport | None, report: rules.UsageReport) -> Done:
        """Return what a repair did with a report, and the money."""
        amount, currency = await self._database.read(lambda conn: money_of.report(conn, self._catalogs, report))
        if report.state in _ITEM_STATES and report.invoice_item_id is not None:
            is_new = before is None or before.invoice_item_id != report.invoice_item_id
            what = f"invoice item {report.invoice_item_id} " + ("was made" if is_new else "has an invoice of its own")
        elif report.state is states.ReportState.SENT:
            what = f"sent to the meter {report.stripe_event_name}"
        else:
            what = f"the report is now {report.state}" + (f": {report.error}" if report.error else "")
        about = f"{report.meter} {report.period_start.astimezone(UTC).isoformat()} {report.report_id}"
        return Done("usage", report.account_id, about, f"{report.units} units: {what}", amount, currency)

    async def _reopen_missing(self, discrepancy: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Mark as lost the reports whose units a minute's total lacks, if it is certain which reports they are."""
        meters = (await self._stripe.meter_ids()).get(discrepancy.event_name)
        if meters is None:
            return  # Stripe never deletes a meter, so this is not the Stripe account that the usage was sent to
        minutes: dict[datetime, list[rules.UsageReport]] = {}
        for report in await self._reports(discrepancy.account_id, discrepancy.period_start):
            if report.stripe_event_name == discrepancy.event_name and report.state is states.ReportState.SENT:
                minutes.setdefault(report.minute, []).append(report)
        for minute, reports in minutes.items():
            if (
                max(report.last_attempt_at or minute for report in reports) + billability.SUMS_LAG_MAX
                > self._clock.now()
            ):
                continue  # it may still appear
            total = await self._stripe.meter_total(meters, reports[0].customer_id, minute, minute + _MINUTE)
            missing = sum(report.units for report in reports) - total
            lost = reports if total == 0 else [report for report in reports if report.units == missing]
            if missing and sum(report.units for report in lost) == missing:
                change = states.failed_absent(self._clock.now(), "its meter does not have it")
                await self._change(lost, change, "usage.report_failed", origin)

    async def _charge_unbilled(self, discrepancy: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Charge by invoice items what the meter has and no invoice charges; what a person forgave stays so."""
        unbilled = [
            report
            for report in await self._reports(discrepancy.account_id, discrepancy.period_start)
            if report.report_id in discrepancy.unbilled and report.state is states.ReportState.SENT
        ]
        change = states.unbilled(self._clock.now(), "its invoice does not charge it")
        await self._change(unbilled, change, "usage.report_unbilled", origin)

    async def _invoice_alone(self, discrepancy: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Let an item that no invoice will take have its own invoice."""
        left = [
            report
            for report in await self._reports(discrepancy.account_id, discrepancy.period_start)
            if report.report_id == discrepancy.report_id
        ]
        await self._change(left, states.uninvoiced(self._clock.now()), "usage.item_uninvoiced", origin)

    async def _change(
        self, reports: Sequence[rules.UsageReport], change: states.Change, action: str, origin: audit_store.Origin
    ) -> None:
        now = self._clock.now()

        async def write(conn: AsyncConnection) -> None:
            for report in reports:
                if await store.write(conn, report, change):
                    self._changed.add(report.report_id)
                    changes = {"report": report.report_id, "meter": report.meter, "units": report.units}
                    await audit_store.append(conn, origin, report.account_id, action, changes, now)

        await self._database.run(write)


def _since(found: Sequence[discrepancies.UsageDiscrepancy], account_id: str) -> datetime:
    return min(one.period_start for one in found if one.account_id == account_id)


def _is_same(before: rules.UsageReport | None, after: rules.UsageReport) -> bool:
    if before is None:
        return False
    was, now = ((one.state, one.identifier, one.invoice_item_id, one.error) for one in (before, after))
    return was == now
