"""Repairs usage discrepancies, if that needs no person's judgement."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.reconciliation import discrepancies
from billing_svc.stripe import client
from billing_svc.usage_export import billability, export_now, retry_failed, rules, states, store

_MINUTE = timedelta(minutes=1)


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
        self._stripe = stripe
        self._clock = now
        self._flush = export_now.ExportNow(database, catalogs, stripe, now)

    async def mend(self, found: Sequence[discrepancies.UsageDiscrepancy], origin: audit_store.Origin) -> None:
        """Repair what can be repaired; the next comparison reports the rest."""
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

    async def _reports(self, account_id: str) -> list[rules.UsageReport]:
        since = self._clock.now() - discrepancies.LOOKED_BACK
        return await self._database.read(lambda conn: store.all_of_account(conn, account_id, since))

    async def _reopen_missing(self, discrepancy: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Mark as lost the reports whose units a minute's total lacks, if it is certain which reports they are."""
        meters = (await self._stripe.meter_ids()).get(discrepancy.event_name)
        if meters is None:
            return  # Stripe never deletes a meter, so this is not the Stripe account that the usage was sent to
        minutes: dict[datetime, list[rules.UsageReport]] = {}
        for report in await self._reports(discrepancy.account_id):
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
            for report in await self._reports(discrepancy.account_id)
            if report.report_id in discrepancy.unbilled and report.state is states.ReportState.SENT
        ]
        change = states.unbilled(self._clock.now(), "its invoice does not charge it")
        await self._change(unbilled, change, "usage.report_unbilled", origin)

    async def _invoice_alone(self, discrepancy: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Let an item that no invoice will take have its own invoice."""
        left = [
            report
            for report in await self._reports(discrepancy.account_id)
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
                    changes = {"report": report.report_id, "meter": report.meter, "units": report.units}
                    await audit_store.append(conn, origin, report.account_id, action, changes, now)

        await self._database.run(write)
