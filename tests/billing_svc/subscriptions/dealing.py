"""An account that buys, changes and cancels, and the worker's loops that process it."""

import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from billing.v1 import quota_pb2, subscription_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform.database import tables
from billing_svc.stripe import intents
from billing_svc.subscriptions.follow_ups import run_follow_ups
from billing_svc.subscriptions.records import refresh_subscription
from billing_svc.usage_export import accrual, charge_unbilled, export_now, sending
from tests.billing_svc.sandboxed import World

NOW, AT_PERIOD_END = subscription_pb2.TIMING_NOW, subscription_pb2.TIMING_AT_PERIOD_END


@dataclass
class Dealing:
    """The account, and the calls that a test makes for it."""

    world: World
    account_id: str = "org_1"
    catalogs: versions.CatalogCache = field(default_factory=versions.CatalogCache)

    # Callers.

    async def buy(self, **more: Any) -> str:  # noqa: ANN401 - the message's fields
        """Buy a plan, and wait until it is in force."""
        subscription_id = await self.world.subscribe(self.account_id, **more)
        await self.world.deliver_new()
        return subscription_id

    async def told(self) -> subscription_pb2.Subscription:
        return await self.world.subscription(self.account_id)

    async def switch(self, *, on: bool, request_id: str = "") -> subscription_pb2.Subscription:
        request = subscription_pb2.SetPayAsYouGoRequest(
            account_id=self.account_id, enabled=on, request_id=request_id or uuid.uuid4().hex
        )
        return (await self.world.billing.subscriptions.SetPayAsYouGo(request)).subscription

    async def change(self, timing: int = NOW, **more: Any) -> subscription_pb2.ChangePlanResponse:  # noqa: ANN401 - as above
        request = subscription_pb2.ChangePlanRequest(
            account_id=self.account_id,
            timing=timing,  # type: ignore[arg-type]  # one of the two above
            **{"request_id": uuid.uuid4().hex, **more},
        )
        return await self.world.billing.subscriptions.ChangePlan(request)

    async def cancel(self, timing: int = NOW, request_id: str = "") -> subscription_pb2.Subscription:
        request = subscription_pb2.CancelSubscriptionRequest(
            account_id=self.account_id,
            timing=timing,  # type: ignore[arg-type]  # as above
            request_id=request_id or uuid.uuid4().hex,
        )
        return (await self.world.billing.subscriptions.CancelSubscription(request)).subscription

    async def resume(self, request_id: str = "") -> subscription_pb2.Subscription:
        request = subscription_pb2.ResumeSubscriptionRequest(
            account_id=self.account_id, request_id=request_id or uuid.uuid4().hex
        )
        return (await self.world.billing.subscriptions.ResumeSubscription(request)).subscription

    async def use(self, meter: str, quantity: int) -> usage_pb2.RecordUsageResponse:
        request = usage_pb2.RecordUsageRequest(
            account_id=self.account_id, event_id=uuid.uuid4().hex, meter=meter, quantity=quantity
        )
        return await self.world.billing.usage.RecordUsage(request)

    async def check(self, meter: str, quantity: int = 1) -> quota_pb2.CheckQuotaResponse:
        request = quota_pb2.CheckQuotaRequest(account_id=self.account_id, meter=meter, quantity=quantity)
        return await self.world.billing.quota.CheckQuota(request)

    # The worker.

    @property
    def duties(self) -> run_follow_ups.FollowUps:
        billing, stripe = self.world.billing, self.world.stripe
        database, now = billing.transactions, billing.clock
        return run_follow_ups.FollowUps(
            database,
            self.catalogs,
            intents.Requests(database, stripe, now),
            refresh_subscription.Refresher(database, self.catalogs, stripe, now),
            export_now.ExportNow(database, self.catalogs, stripe, now),
            charge_unbilled.UnbilledUsage(database, stripe, now),
            now,
        )

    async def work(self) -> None:
        """Run every loop of the worker until it finds nothing to do."""
        billing = self.world.billing
        database, now, at_once = billing.transactions, billing.clock, timedelta()
        sender = sending.Sender(database, self.catalogs, self.world.stripe, now)
        await self.world.deliver_new()
        while await self.duties.do_due():
            await self.world.deliver_new()
        await accrual.Accrual(database, self.catalogs, now, at_once, at_once).seal_due()
        while await sender.send_due():
            pass
        await self.world.deliver_new()

    async def advance(self, **by: float) -> list[str]:
        return await self.world.advance(timedelta(**by), self.work)

    # Stripe.

    async def give_card(self, card: str = "works") -> None:
        """Give the customer another card: works, declines or none."""
        (customer,) = await self.world.sandbox.all("/v1/customers")
        await self.world.sandbox.control("POST", "cards", {"customer": customer["id"], "card": card})

    async def at_stripe(self, status: str = "all") -> list[dict[str, Any]]:
        """Return the customer's subscriptions, oldest first."""
        return list(reversed(await self.world.sandbox.all("/v1/subscriptions", status=status)))

    async def invoiced(self) -> dict[str, int]:
        """Return the sum of all invoices by price, in minor units."""
        prices = {row.price_id: row.lookup_key for row in await self.world.rows(tables.stripe_prices)}
        sums: dict[str, int] = {}
        for invoice in await self.world.sandbox.all("/v1/invoices"):
            for line in invoice["lines"]["data"]:
                price_id = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
                key = prices.get(price_id, "")
                sums[key] = sums.get(key, 0) + line["amount"]
        return {key: amount for key, amount in sums.items() if amount}
