"""Writing off: an operator forgives a usage report, which is then never charged.

Only a report that nothing has charged, and nothing will charge, can be written off. Where the stored state does not
show that, Stripe is asked first, outside of the transaction; the account's lease keeps the worker from acting between.
"""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.customers import store as customers_store
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.reconciliation import discrepancies, usage
from billing_svc.stripe import client, leases
from billing_svc.usage_export import report_lists, rules, states, store, write_off_rules
from billing_svc.usage_export.write_off_rules import Evidence

ACTION = "usage.written_off"


@dataclass(frozen=True, slots=True)
class WriteOff:
    """Which report is written off, and why."""

    account_id: str
    report_id: str
    note: str


class WriteOffs:
    """Writes reports off."""

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
        self._usage = usage.UsageReconciliation(database, catalogs, stripe, now)

    async def write_off(self, asked: WriteOff, origin: audit_store.Origin) -> rules.UsageReport:
        """Write a report off and return it; a repeat of the origin's request id changes nothing.

        Never call it inside a transaction. Raises UsageReportNotFound, NotWritableOff, RequestIdReused, LostRace,
        StripeUnavailable and Unavailable.
        """
        report, is_done = await self._database.read(lambda conn: _find(conn, asked, origin))
        if is_done:
            return report
        lease = await self._database.run(lambda conn: leases.take(conn, f"usage:{asked.account_id}", self._clock.now()))
        if lease is None:
            raise errors.LostRace("a worker is sending the account's usage; send the same call again")
        try:
            # Read again: nobody else changes the account's reports now.
            report, is_done = await self._database.read(lambda conn: _find(conn, asked, origin))
            if not is_done:
                await self._check(report)
                report = await self._write(lease, report, asked, origin)
        finally:
            await self._database.run(lambda conn: leases.end(conn, lease, self._clock.now()))
        return report

    async def _check(self, report: rules.UsageReport) -> None:
        """Raise NotWritableOff unless nothing has charged the report, and nothing will."""
        written = await self._database.read(lambda conn: report_lists.item_write(conn, report))
        judged = write_off_rules.judge(report, written)
        refusal = judged.refusal
        if not refusal and judged.needs is Evidence.ITEM:
            refusal = await self._charged_by_item(report)
        elif not refusal and judged.needs is Evidence.INVOICES:
            refusal = await self._charged_by_meter(report)
        if refusal:
            raise _refused(report, refusal)

    async def _charged_by_item(self, report: rules.UsageReport) -> str:
        try:
            item = await self._stripe.invoice_item(str(report.invoice_item_id))
        except client.NotAtStripe:
            return ""
        invoice = item.get("invoice")
        if invoice:
            return f"its invoice item {report.invoice_item_id} is on invoice {invoice}: void or credit that at Stripe"
        if await self._database.read(lambda conn: customers_store.is_deleted(conn, report.customer_id)):
            return ""  # no invoice of a customer that is gone will ever take the item
        return f"its invoice item {report.invoice_item_id} waits for an invoice: delete it at Stripe first"

    async def _charged_by_meter(self, report: rules.UsageReport) -> str:
        """Return why a sent report counts as charged: only the comparison with the invoices shows what is missing."""
        for found in await self._usage.compare([report.account_id]):
            is_of = (found.meter, found.period_start, found.event_name) == (
                report.meter,
                report.period_start,
                report.stripe_event_name,
            )
            if is_of and found.kind is discrepancies.DiscrepancyKind.LINE:
                missing = found.ours - found.theirs
                return (
                    "" if 0 < report.units <= missing else f"invoices lack {missing} units, and it has {report.units}"
                )
        return "its meter has it, and bills it: correct the usage, or give the money back at Stripe"

    async def _write(
        self, lease: leases.Lease, report: rules.UsageReport, asked: WriteOff, origin: audit_store.Origin
    ) -> rules.UsageReport:
        now = self._clock.now()

        async def write(conn: AsyncConnection) -> rules.UsageReport:
            if not await leases.renew(conn, lease, now):
                raise errors.LostRace("a worker has taken over the account's usage; send the same call again")
            written = await store.write(conn, report, states.written_off(now, asked.note))
            changes = _changes(report, asked.note)
            if written is None or not await audit_store.append_once(
                conn, origin, report.account_id, ACTION, changes, now
            ):
                raise errors.LostRace("the usage report has changed; send the same call again")
            return written

        return await self._database.run(write)


async def _find(conn: AsyncConnection, asked: WriteOff, origin: audit_store.Origin) -> tuple[rules.UsageReport, bool]:
    """Return the report, and whether this request has written it off already."""
    report = await store.find(conn, asked.account_id, asked.report_id)
    earlier = await audit_store.find_request(conn, asked.account_id, origin.request_id)
    if earlier is not None:
        told = (earlier.action, earlier.changes.get("report"), earlier.changes.get("note"))
        if told != (ACTION, asked.report_id, asked.note):
            message = f"request_id: {origin.request_id!r} was used with other content"
            raise errors.RequestIdReused(message, {"request_id": origin.request_id})
    if report is None:
        message = f"report_id: the account has no usage report {asked.report_id!r}"
        raise errors.UsageReportNotFound(message, {"report_id": asked.report_id})
    return report, earlier is not None


def _changes(report: rules.UsageReport, note: str) -> dict[str, object]:
    return {
        "report": report.report_id,
        "meter": report.meter,
        "units": report.units,
        "before": str(report.state),
        "amount": report.amount,
        "invoice_item": report.invoice_item_id,
        "note": note,
    }


def _refused(report: rules.UsageReport, why: str) -> errors.NotWritableOff:
    message = f"usage report {report.report_id} cannot be written off: {why}"
    return errors.NotWritableOff(message, {"report_id": report.report_id, "state": str(report.state)})
