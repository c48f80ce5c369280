"""Lookups before a report is sent: its subscription, its billing period at Stripe, and its meter's total."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.database import transactions
from billing_svc.pricing import rules as pricing_rules
from billing_svc.stripe import client, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.usage_export import billability, rules, shared_meters, store

# Stripe sends the event of a change within three days, also if no caller completes the request.
CHANGES_LAST = timedelta(days=3)


class StripeLookups:
    """Answers questions about a single report."""

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

    async def subscription(self, report: rules.UsageReport) -> billability.ReportBilling | None:
        """Return the stored subscription that bills a report; None if no subscription does."""
        return await self._database.read(lambda conn: self._held(conn, report))

    async def period(
        self, report: rules.UsageReport, billing: billability.ReportBilling | None
    ) -> billability.NextStep:
        """Ask Stripe whether the report's period can still be billed; return the step.

        Raises StripeUnavailable and StripeObjectUnreadable.
        """
        if report.subscription_id is None or billing is None:
            return billability.NextStep(billability.Step.CHARGE_LATE, why="no subscription bills it")
        price_ids = await self._database.read(lambda conn: store.price_ids(conn, report.stripe_event_name))
        try:
            fetched = stripe_subscriptions.from_stripe(await self._stripe.subscription(report.subscription_id))
        except client.NotAtStripe:
            fetched = None
        invoices, at = [], billing.at(report)
        if fetched is not None:
            invoices = await self._stripe.invoices_of_subscription(report.subscription_id, at)
        items = () if fetched is None else fetched.items
        since = billability.item_since(billing.subscription, items, price_ids)
        return billability.at_stripe(at, price_ids, fetched, since, invoices, self._clock.now())

    async def meter_total(self, report: rules.UsageReport, start: datetime, end: datetime) -> int:
        """Return the units that a report's meter has for its customer in [start, end); 0 if the meter does not exist.

        Raises StripeUnavailable.
        """
        meters = (await self._stripe.meter_ids()).get(report.stripe_event_name, [])
        return await self._stripe.meter_total(meters, report.customer_id, start, end)

    async def _held(self, conn: AsyncConnection, report: rules.UsageReport) -> billability.ReportBilling | None:
        if report.subscription_id is None:
            return None
        held = await subscription_records.of_account(conn, report.account_id)
        found = next((record for record in held if record.subscription_id == report.subscription_id), None)
        if found is None:
            return None
        event_name, customer_id = report.stripe_event_name, report.customer_id
        billers = await shared_meters.billers(conn, self._catalogs, held, customer_id, event_name)
        return billability.ReportBilling(
            found,
            event_names=set(await shared_meters.events_of(conn, self._catalogs, found)),
            is_shared=len(billers) > 1,
            line_amount=await self._line_amount(conn, report),
            is_changing=await store.is_changing(conn, report.account_id, self._clock.now() - CHANGES_LAST),
        )

    async def _line_amount(self, conn: AsyncConnection, report: rules.UsageReport) -> int:
        catalog = await self._catalogs.get(conn, report.catalog_version)
        price = pricing_rules.metered_price(catalog, report.plan, report.meter)
        if price is None:
            return 0
        so_far = await store.charged(conn, report)
        unit_price = pricing_rules.unit_price_in_minor_units(catalog, price)
        return pricing_rules.amount(unit_price, so_far.on_the_meter + report.units)
