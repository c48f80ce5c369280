"""An account over months, and everything that Stripe charges it; tests compute the expected amounts by hand."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from billing.v1 import subscription_pb2
from billing_svc.catalog import loading
from billing_svc.metering.gauges import open_periods
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.reconciliation import reconcile
from billing_svc.stripe import catalog_sync
from billing_svc.usage_export import export_now
from tests.billing_svc.subscriptions import dealing

ORIGIN = audit_store.Origin("operator:test")

TIERS = """
catalog: tiers
currency: usd
default_plan: free
meters:
  runs: {unit: run, kind: consumable}
  seats: {unit: seat, kind: gauge}
plans:
  free:
    name: Free
    limits: {runs: {included: 5, beyond: deny}, seats: {included: 1, beyond: deny}}
  small:
    name: Small
    prices:
      monthly: {amount: "10.00", interval: month}
    limits:
      runs: {included: 100, beyond: charge, unit_price: "0.10"}
      seats: {included: 2, beyond: charge, unit_price: "3.00"}
  big:
    name: Big
    prices:
      monthly: {amount: "40.00", interval: month}
    limits:
      runs: {included: 200, beyond: charge, unit_price: "0.05"}
      seats: {included: 4, beyond: charge, unit_price: "2.00"}
"""

ANNIVERSARY = """
catalog: anniversary
currency: usd
default_plan: free
free_period: signup_anniversary
meters:
  credits: {unit: credit, kind: consumable}
plans:
  free:
    name: Free
    limits: {credits: {included: 10, beyond: deny}}
    pay_as_you_go:
      name: More
      limits: {credits: {included: 10, beyond: charge, unit_price: "0.10"}}
"""


@dataclass
class Ledger(dealing.Dealing):
    """Amounts are in the currency's units, such as dollars."""

    async def sell(self, catalog: str) -> None:
        """Publish a test's own catalog, and apply it to Stripe."""
        billing = self.world.billing
        await catalog_sync.apply(
            billing.transactions,
            self.world.stripe,
            loading.load_text(catalog, "test.yaml"),
            "operator:test",
            billing.clock,
            lambda _line: None,
        )

    async def work(self) -> None:
        now = self.world.billing.clock.now()
        await self.world.billing.transactions.run(lambda conn: open_periods.open_due(conn, self.catalogs, now))
        await super().work()

    async def report(self) -> None:
        """Send the usage so far to Stripe, without the worker's other work."""
        billing = self.world.billing
        await export_now.ExportNow(billing.transactions, self.catalogs, self.world.stripe, billing.clock).flush(
            self.account_id
        )

    async def until(self, at: datetime) -> list[str]:
        """Advance the clock to an instant, with the worker running."""
        return await self.world.advance(at - self.world.billing.clock.now(), self.work)

    async def until_period_end(self, **offset: float) -> list[str]:
        ends = (await self.told()).period_end.ToDatetime(tzinfo=UTC)
        return await self.until(ends + timedelta(**offset))

    async def over_the_period_end(self) -> list[str]:
        """Advance the clock until the invoice of the present period is final."""
        return await self.until_period_end(hours=2)

    # What Stripe has.

    async def invoices(self) -> list[dict[str, Any]]:
        """Return the account's invoices with an amount, oldest first."""
        found = await self.world.sandbox.all("/v1/invoices")
        return [one for one in reversed(found) if one["status"] != "void"]

    async def totals(self) -> list[Decimal]:
        return [Decimal(one["total"]) / 100 for one in await self.invoices()]

    async def charged(self) -> Decimal:
        """Return the sum of all invoices and of the pending invoice items."""
        pending = [one["amount"] for one in await self.world.sandbox.all("/v1/invoiceitems") if not one["invoice"]]
        return sum(await self.totals(), Decimal(0)) + Decimal(sum(pending)) / 100

    async def charged_by_meters(self) -> Decimal:
        """Return the part of that sum that is for usage: lines of metered prices, and items for late usage."""
        metered = {row.price_id for row in await self.world.rows(tables.stripe_prices) if row.meter}
        found = 0
        for invoice in await self.invoices():
            for line in invoice["lines"]["data"]:
                price = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
                if price in metered:
                    found += line["amount"]
        for item in await self.world.sandbox.all("/v1/invoiceitems"):
            if (item["metadata"] or {}).get("usage_report"):
                found += item["amount"]
        return Decimal(found) / 100

    async def meter_quantities(self) -> dict[str, int]:
        """Return the units on the lines of metered prices, by lookup key."""
        keys = {row.price_id: row.lookup_key for row in await self.world.rows(tables.stripe_prices) if row.meter}
        found: dict[str, int] = {}
        for invoice in await self.invoices():
            for line in invoice["lines"]["data"]:
                key = keys.get(((line.get("pricing") or {}).get("price_details") or {}).get("price"))
                if key:
                    found[key] = found.get(key, 0) + line["quantity"]
        return {key: units for key, units in found.items() if units}

    async def differences(self, *, fix: bool = False) -> list[tuple[str, str]]:
        """Return what `billing-svc reconcile` would print; with `fix`, what remains after `--fix`."""
        billing = self.world.billing
        comparison = reconcile.Comparison(billing.transactions, self.catalogs, self.world.stripe, billing.clock)
        outcome = await comparison.run(ORIGIN, reconcile.Scope(self.account_id), reconcile.RunOptions(fix=fix))
        return [(one.kind, one.detail) for one in outcome.findings]

    async def as_told(self) -> tuple[object, ...]:
        """Return what `GetSubscription` says of the plan subscription."""
        told = await self.told()
        if not told.subscription_id:
            return ()
        return told.subscription_id, told.status, told.cancel_at.seconds, told.price, told.quantity

    async def as_at_stripe(self) -> tuple[object, ...]:
        """Return the same from Stripe: of the subscription that is not over, else of the last."""
        bases = {row.price_id: row.price for row in await self.world.rows(tables.stripe_prices) if not row.meter}
        plans = [
            (one, item)
            for one in await self.at_stripe()
            for item in one["items"]["data"]
            if item["price"]["id"] in bases
        ]
        if not plans:
            return ()
        newest, item = max(plans, key=lambda one: (one[0]["ended_at"] is None, one[0]["created"]))
        status = subscription_pb2.Status.Value(f"STATUS_{newest['status'].upper()}")
        # After its end, a subscription's scheduled end is not compared.
        cancel_at = newest["cancel_at"] or 0 if newest["ended_at"] is None else 0
        return newest["id"], status, cancel_at, bases[item["price"]["id"]], item["quantity"]


def prorated(price: str, begins: int, at: int, ends: int) -> Decimal:
    """Return a price's share for the time from an instant to the end of its period, in whole cents."""
    exact = Decimal(price) * (ends - at) / (ends - begins)
    return exact.quantize(Decimal("0.01"), ROUND_HALF_UP)
