"""Helpers that call the service for an account as a product's backend does, in short notation."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.dialects import postgresql

from billing.v1 import decision_pb2, quota_pb2, subscription_pb2, usage_pb2
from billing_svc.catalog import loading, versions
from billing_svc.platform.database import tables
from tests.acceptance import told
from tests.billing_svc.service import Billing

ALLOWED, DENIED = decision_pb2.DECISION_ALLOWED, decision_pb2.DECISION_DENIED
PLAIN = decision_pb2.DECISION_REASON_UNSPECIFIED
EXHAUSTED = decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
OVERAGE = decision_pb2.DECISION_REASON_OVERAGE
GRACE = decision_pb2.DECISION_REASON_GRACE
GRACE_EXPIRED = decision_pb2.DECISION_REASON_GRACE_EXPIRED
SOFT_LIMIT = decision_pb2.DECISION_REASON_SOFT_LIMIT
RATE_LIMITED = decision_pb2.DECISION_REASON_RATE_LIMITED
NOT_IN_PLAN = decision_pb2.DECISION_REASON_NOT_IN_PLAN
REJECT = usage_pb2.IF_EXCEEDED_REJECT

# Not the first of a month and not midnight, so that a period's beginning at this instant is visible.
START = datetime(2026, 5, 11, 9, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Account:
    """A customer's account, as the product's backend uses it."""

    billing: Billing
    account_id: str

    @property
    def now(self) -> datetime:
        return self.billing.clock.now()

    async def check(self, meter: str = "", quantity: int | None = None, **fields: Any) -> quota_pb2.CheckQuotaResponse:  # noqa: ANN401 - the request's own
        request = quota_pb2.CheckQuotaRequest(account_id=self.account_id, meter=meter, quantity=quantity, **fields)
        return await self.billing.quota.CheckQuota(request)

    async def record(
        self,
        event_id: str,
        meter: str = "",
        quantity: int | None = None,
        *,
        occurred_at: datetime | None = None,
        **fields: Any,  # noqa: ANN401 - as above
    ) -> usage_pb2.RecordUsageResponse:
        request = usage_pb2.RecordUsageRequest(
            account_id=self.account_id, event_id=event_id, meter=meter, quantity=quantity, **fields
        )
        if occurred_at is not None:
            request.occurred_at.FromDatetime(occurred_at)
        return await self.billing.usage.RecordUsage(request)

    async def correct(
        self, correction_id: str, event_id: str, quantity: int | None = None
    ) -> usage_pb2.CorrectUsageResponse:
        request = usage_pb2.CorrectUsageRequest(
            account_id=self.account_id, correction_id=correction_id, event_id=event_id, quantity=quantity
        )
        return await self.billing.usage.CorrectUsage(request)

    async def usage(self, *meters: str) -> dict[str, usage_pb2.MeterUsage]:
        request = usage_pb2.GetUsageRequest(account_id=self.account_id, meters=meters)
        return {one.meter: one for one in (await self.billing.usage.GetUsage(request)).meters}

    async def subscribe(self, plan: str, **fields: Any) -> told.Told:  # noqa: ANN401 - as above
        """Apply a subscription that begins now, as if Stripe had reported it."""
        subscription = told.Told(plan, account_id=self.account_id, **{"since": self.now, **fields})
        await self.tell(subscription)
        return subscription

    async def tell(self, subscription: told.Told) -> None:
        await subscription.apply(self.billing.transactions, self.now)

    async def switch_pay_as_you_go(self, *, on: bool) -> None:
        """Write what SetPayAsYouGo writes on the default plan once its metered-only subscription exists at Stripe."""
        under = None
        if on:
            request = subscription_pb2.GetSubscriptionRequest(account_id=self.account_id)
            known = (await self.billing.subscriptions.GetSubscription(request)).subscription
            under = known.subscription_id
            if not under:
                under = "sub_metered"
                await self.subscribe(known.plan, price="", subscription_id=under)
        row = {"account_id": self.account_id, "created_at": self.now, "pay_as_you_go_under": under}
        statement = postgresql.insert(tables.accounts).values(row)
        async with self.billing.engine.begin() as connection:
            await connection.execute(
                statement.on_conflict_do_update(index_elements=["account_id"], set_={"pay_as_you_go_under": under})
            )


async def publish(billing: Billing, text: str) -> int:
    """Publish a catalog, as another process would; returns its version."""
    catalog = loading.load_text(text, "test")
    now = billing.clock.now()
    version, _ = await billing.transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", now))
    return version
