"""Mending what a reconciliation found about usage, as far as that needs no person's judgement."""

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
    """Takes up again what Stripe lacks."""

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
        """Mend what can be; another comparison shows what is left."""
        for drift in found:
            match drift.kind:
                case discrepancies.DiscrepancyKind.METER if drift.theirs < drift.ours:
                    await self._reopen_missing(drift, origin)
                case discrepancies.DiscrepancyKind.LINE if drift.theirs < drift.ours:
                    await self._charge_unbilled(drift, origin)
                case discrepancies.DiscrepancyKind.UNINVOICED:
                    await self._invoice_alone(drift, origin)
                case _:
                    pass
        for account_id in dict.fromkeys(one.account_id for one in found):
            now = self._clock.now()
            await self._database.run(
                lambda conn, one=account_id, now=now: retry_failed.retry_all(conn, one, origin, now)  # type: ignore[misc]
            )
            try:
                await self._flush.flush(account_id)
            except errors.UsageNotReported:
                continue  # the next comparison shows it

    async def _reports(self, account_id: str) -> list[rules.UsageReport]:
        since = self._clock.now() - discrepancies.LOOKED_BACK
        return await self._database.read(lambda conn: store.all_of_account(conn, account_id, since))

    async def _reopen_missing(self, drift: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Take those slices for lost that a minute's sum lacks, if it is plain which ones they are."""
        meters = (await self._stripe.meter_ids()).get(drift.event_name)
        if meters is None:
            return  # Stripe deletes no meter: this is not the account that the usage was sent to
        minutes: dict[datetime, list[rules.UsageReport]] = {}
        for one in await self._reports(drift.account_id):
            if one.stripe_event_name == drift.event_name and one.state is states.ReportState.SENT:
                minutes.setdefault(one.minute, []).append(one)
        for minute, reports in minutes.items():
            if max(one.last_attempt_at or minute for one in reports) + billability.SUMS_LAG_MAX > self._clock.now():
                continue  # it may yet appear
            total = await self._stripe.meter_total(meters, reports[0].customer_id, minute, minute + _MINUTE)
            missing = sum(one.units for one in reports) - total
            lost = reports if total == 0 else [one for one in reports if one.units == missing]
            if missing and sum(one.units for one in lost) == missing:
                change = states.failed_absent(self._clock.now(), "its meter does not have it")
                await self._change(lost, change, "usage.report_failed", origin)

    async def _charge_unbilled(self, drift: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Charge by invoice items what reached its meter and is on no invoice: the newest slices that come to it."""
        unbilled, left = [], drift.ours - drift.theirs
        for one in reversed(await self._reports(drift.account_id)):
            is_of = (one.meter, one.period_start, one.stripe_event_name, one.state) == (
                drift.meter,
                drift.period_start,
                drift.event_name,
                states.ReportState.SENT,
            )
            if is_of and left:
                unbilled.append(one)
                left -= one.units
        if left == 0:
            change = states.unbilled(self._clock.now(), "its invoice does not charge it")
            await self._change(unbilled, change, "usage.report_unbilled", origin)

    async def _invoice_alone(self, drift: discrepancies.UsageDiscrepancy, origin: audit_store.Origin) -> None:
        """Let an item that no invoice takes in have one of its own."""
        left = [one for one in await self._reports(drift.account_id) if one.report_id == drift.report_id]
        await self._change(left, states.uninvoiced(self._clock.now()), "usage.item_uninvoiced", origin)

    async def _change(
        self, reports: Sequence[rules.UsageReport], change: states.Change, action: str, origin: audit_store.Origin
    ) -> None:
        now = self._clock.now()

        async def write(conn: AsyncConnection) -> None:
            for one in reports:
                if await store.write(conn, one, change):
                    changes = {"report": one.report_id, "meter": one.meter, "units": one.units}
                    await audit_store.append(conn, origin, one.account_id, action, changes, now)

        await self._database.run(write)
