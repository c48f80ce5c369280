"""Charges usage that a meter cannot bill any more: an invoice item for each report, on the next or its own invoice.

Which reports are charged like this: `billability.py` decides it before a report is sent, `charge_unbilled.py` after a
subscription has ended.

The steps: (1) the amount is stored, under the account's lease, and never changes; (2) the invoice item is created; (3)
if no subscription will invoice it, `late_invoices.py` puts it on an invoice of its own. (2) and (3) are stored intents,
so a repeat has no second effect.
"""

import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors, money
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.pricing import rules as pricing_rules
from billing_svc.stripe import client, intents, leases, subscription_records
from billing_svc.usage_export import late_invoices, rules, shared_meters, states, store

_log = structlog.get_logger(__name__)

# No caller waits for these calls; they are repeated until Stripe answers.
TRY_AGAIN = timedelta(minutes=1)
# Stripe refused the call: a person has to change something, perhaps at Stripe.
TRY_REFUSED_AGAIN = timedelta(hours=1)

_ORIGIN = audit_store.Origin("service")

# Unlinks a customer if it was deleted at Stripe; returns whether it was.
NoticeMissing = Callable[[str, audit_store.Origin], Awaitable[bool]]


class LateUsage:
    """Charges late usage reports of an account; the caller holds the account's lease."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
        notice_missing: NoticeMissing | None = None,
    ) -> None:
        """`notice_missing` gets each customer that Stripe refused as missing, perhaps because it was deleted there."""
        self._notice_missing = notice_missing
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._clock = now
        self._requests = intents.Requests(database, stripe, now)
        self._invoices = late_invoices.LateInvoices(database, stripe, self._requests)

    async def charge(self, account_id: str, lease: leases.Lease) -> int:
        """Charge the account's late reports that are due, and return how many changed their state. Raises Overtaken."""
        moved = 0
        for report in await self._due(account_id, states.ReportState.LATE):
            moved += await self._tried(lease, report, self._itemise)
        waiting = await self._due(account_id, states.ReportState.ITEMISED)
        if waiting:
            moved += await self._tried(lease, waiting[0], self._invoice)
        return moved

    async def _due(self, account_id: str, state: states.ReportState) -> list[rules.UsageReport]:
        now = self._clock.now()
        reports = await self._database.read(lambda conn: store.open_reports(conn, account_id))
        return [report for report in reports if report.state is state and report.next_attempt_at <= now]

    async def _tried(self, lease: leases.Lease, report: rules.UsageReport, step: Any) -> int:  # noqa: ANN401 - one of two methods
        """Take one step. Repeats later if Stripe cannot be reached; if it refuses, the report keeps the error."""
        try:
            return int(await step(lease, report))
        except (errors.StripeUnavailable, errors.LostRace) as error:
            until = self._clock.now() + TRY_AGAIN
            await self._write(lease, report, states.Change({"next_attempt_at": until, "error": error.message}))
        except (errors.StripeRefused, client.NotAtStripe) as error:
            _log.error("late_usage_refused", account=report.account_id, report=report.report_id, error=str(error))
            now, why = self._clock.now(), str(error)
            change = states.failed_item(now, why)
            if report.state is states.ReportState.ITEMISED:  # the item exists, and a later invoice may take it
                change = states.Change({"next_attempt_at": now + TRY_REFUSED_AGAIN, "error": why})
            await self._write(lease, report, change)
            if isinstance(error, errors.CustomerMissing) and self._notice_missing is not None:
                # If this fails, the next refusal of the customer leads here again.
                with contextlib.suppress(errors.BillingError):
                    await self._notice_missing(error.customer_id, _ORIGIN)
        return 0

    async def _itemise(self, lease: leases.Lease, report: rules.UsageReport) -> int:
        amount, currency, unit, billed_with = await self._priced(lease, report)
        if amount == 0:
            # The amount is too small to charge, or rounding has charged it with earlier units.
            return await self._invoiced(lease, report, amount, None)
        if abs(amount) > money.MINOR_UNITS_MAX:
            # Stripe would refuse this request, so it is not sent. The report gets the error as if Stripe had refused
            # it.
            raise errors.StripeRefused(f"{amount} minor units are more than Stripe takes ({money.MINOR_UNITS_MAX})")
        period = {"start": int(report.period_start.timestamp()), "end": int(report.reported_for.timestamp())}
        params = {
            "customer": report.customer_id,
            "amount": amount,
            "currency": currency,
            "description": f"{unit}: {report.units} beyond included, reported late",
            "period": period,
            "metadata": {"account_id": report.account_id, "usage_report": report.report_id},
            **({} if billed_with is None else {"subscription": billed_with}),
        }

        async def look_up(since: datetime) -> client.Data | None:
            made = await self._stripe.invoice_items_of(report.customer_id, since - late_invoices.CLOCKS_APART_MAX)
            return late_invoices.of_report(made, report)

        intent = intents.Intent(report.account_id, f"usage-item:{report.report_id}", "invoiceitems.create", params)
        item = await self._requests.perform(intent, look_up)
        return await self._invoiced(lease, report, amount, str(item["id"]))

    async def _priced(self, lease: leases.Lease, report: rules.UsageReport) -> tuple[int, str, str, str | None]:
        """Return the amount (computed once and then stored), its currency, the unit's name, and the subscription.

        The next invoice of the subscription takes the item; None: the next invoice of any subscription.
        """

        async def fix(conn: AsyncConnection) -> tuple[int, str, str, str | None]:
            await self._hold(conn, lease)
            catalog = await self._catalogs.get(conn, report.catalog_version)
            unit = catalog.meters[report.meter].display_name or report.meter
            held = await subscription_records.of_account(conn, report.account_id)
            billers = await shared_meters.billers(
                conn, self._catalogs, held, report.customer_id, report.stripe_event_name
            )
            billed_with = shared_meters.taker(held, billers, report)
            if report.amount is not None:
                return report.amount, catalog.currency, unit, billed_with
            price = pricing_rules.metered_price(catalog, report.plan, report.meter)
            if price is None:  # cannot happen: accrual found this price before
                raise LookupError(f"plan {report.plan} of version {report.catalog_version} has no price for its usage")
            bills = next((record for record in held if record.subscription_id == report.subscription_id), None)
            so_far = await store.charged(conn, report)
            amount = pricing_rules.late_amount(
                pricing_rules.unit_price_in_minor_units(catalog, price),
                so_far.on_the_meter,
                so_far.on_items,
                so_far.by_items,
                report.units,
            )
            if bills is not None and bills.was_trial(bills.billed_at(report.reported_for, report.period_start)):
                amount = 0  # usage in a trial is free, as it is on the meter
            await store.write(conn, report, states.Change({"amount": amount}))
            return amount, catalog.currency, unit, billed_with

        return await self._database.run(fix)

    async def _invoiced(self, lease: leases.Lease, report: rules.UsageReport, amount: int, item_id: str | None) -> int:
        """Store the item. If no subscription will invoice it, the item waits for its own invoice."""
        now = self._clock.now()

        async def note(conn: AsyncConnection) -> None:
            await self._hold(conn, lease)
            held = await subscription_records.of_account(conn, report.account_id)
            if item_id is None or store.will_be_invoiced(held, report.customer_id):
                change = states.invoiced(now, amount, item_id)
            else:
                change = states.itemised(now, amount, item_id)
            if await store.write(conn, report, change) is None:
                return
            changes = {"report": report.report_id, "meter": report.meter, "units": report.units, "amount": amount}
            await audit_store.append(conn, _ORIGIN, report.account_id, "usage.charged_late", changes, now)

        await self._database.run(note)
        return 1

    async def _invoice(self, lease: leases.Lease, first: rules.UsageReport) -> int:
        """Invoice the items of all due reports of the first report's customer, on one invoice."""
        waiting = await self._due(first.account_id, states.ReportState.ITEMISED)
        invoiced = await self._invoices.invoice(
            first, [report for report in waiting if report.customer_id == first.customer_id]
        )
        for report in invoiced:
            await self._write(lease, report, states.invoiced_alone(self._clock.now()))
        return len(invoiced)

    async def _write(self, lease: leases.Lease, report: rules.UsageReport, change: states.Change) -> None:
        async def write(conn: AsyncConnection) -> None:
            await self._hold(conn, lease)
            await store.write(conn, report, change)

        await self._database.run(write)

    async def _hold(self, conn: AsyncConnection, lease: leases.Lease) -> None:
        if not await leases.renew(conn, lease, self._clock.now()):
            raise leases.Overtaken
