"""The worker's loops for usage, run by tests step by step."""

from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any

from billing.v1 import usage_pb2
from billing_svc.catalog import versions
from billing_svc.metering.gauges import open_periods
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.reconciliation import usage
from billing_svc.reconciliation.discrepancies import UsageDiscrepancy
from billing_svc.subscriptions.records import refresh_subscription
from billing_svc.subscriptions.refusals import gone_customers
from billing_svc.usage_export import accrual, sending
from tests.billing_svc.sandboxed import World

ORIGIN = audit_store.Origin("operator:test")


@dataclass
class Worker:
    """The worker's loops for usage, run step by step."""

    world: World
    sealer: accrual.Accrual
    sender: sending.Sender

    async def work(self) -> None:
        """Do everything that is due."""
        now = self.world.billing.clock.now()
        catalogs = versions.CatalogCache()
        await self.world.billing.transactions.run(lambda conn: open_periods.open_due(conn, catalogs, now))
        await self.sealer.seal_due()
        while await self.sender.send_due():
            pass

    async def advance(self, by: timedelta, apart: timedelta = timedelta(minutes=10)) -> list[str]:
        """Advance the clock, with the worker running and every event delivered."""
        return await self.world.advance(by, self.work, apart=apart)

    async def over_the_period_end(self) -> None:
        """Let time pass until the period's last invoice is final: by days, and by minutes around the end."""
        ends = (await self.world.subscription()).period_end.ToDatetime(tzinfo=UTC)
        await self.advance(ends - self.world.billing.clock.now() - timedelta(hours=1), timedelta(days=1))
        await self.advance(timedelta(hours=4))

    async def catch_up(self) -> None:
        """Advance the clock as far as accrual and sending of the recorded usage need."""
        await self.advance(timedelta(minutes=12), timedelta(minutes=3))


def worker_of(world: World) -> Worker:
    billing, catalogs = world.billing, versions.CatalogCache()
    minute, five = timedelta(minutes=1), timedelta(minutes=5)
    refresher = refresh_subscription.Refresher(billing.transactions, catalogs, world.stripe, billing.clock)
    gone = gone_customers.GoneCustomers(billing.transactions, world.stripe, refresher, billing.clock)
    return Worker(
        world,
        accrual.Accrual(billing.transactions, catalogs, billing.clock, minute, five),
        sending.Sender(billing.transactions, catalogs, world.stripe, billing.clock, gone.unlink_if_deleted),
    )


async def subscribed(world: World, **more: Any) -> str:  # noqa: ANN401 - the message's fields
    subscription_id = await world.subscribe(**more)
    await world.deliver_new()
    return subscription_id


async def record(world: World, meter: str, quantity: int, event_id: str, **more: Any) -> None:  # noqa: ANN401 - as above
    await world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter=meter, quantity=quantity, **more)
    )


async def reports(world: World) -> list[tuple[str, int, str]]:
    """Return the meter, the units and the state of each report, in order."""
    rows = await world.rows(tables.usage_reports)
    rows.sort(key=lambda row: (row.period_start, row.meter, row.slice))
    return [(row.meter, row.to_units - row.from_units, row.state) for row in rows]


async def drifts(world: World) -> list[UsageDiscrepancy]:
    billing = world.billing
    return await usage.UsageReconciliation(
        billing.transactions, versions.CatalogCache(), world.stripe, billing.clock
    ).compare()
