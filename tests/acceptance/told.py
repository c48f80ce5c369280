"""A subscription as Stripe reports it, applied as the worker applies it after a fetch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from dateutil.relativedelta import relativedelta
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.customers import store as customers_store
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables, transactions
from billing_svc.stripe import catalog_objects
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import apply_subscription

ORIGIN = audit_store.Origin("stripe:evt_test")


@dataclass(frozen=True, slots=True)
class Told:
    """A subscription at Stripe, by default active for a month from `since`.

    With an empty `price` it is metered-only: it has the plan's pay-as-you-go prices.
    """

    plan: str
    since: datetime
    price: str = "monthly"
    account_id: str = "org_1"
    subscription_id: str = "sub_1"
    status: str = "active"
    quantity: int = 1
    anchor: datetime | None = None
    period: tuple[datetime, datetime] | None = None
    cancel_at: datetime | None = None
    ended_at: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def but(self, **changes: Any) -> "Told":  # noqa: ANN401 - its own fields
        """Return the subscription after a change."""
        return replace(self, **changes)

    async def apply(self, database: transactions.Transactions, now: datetime) -> None:
        """Apply it as the worker would after a fetch at `now`."""
        await database.run(lambda conn: self._apply(conn, now))

    async def _apply(self, conn: AsyncConnection, now: datetime) -> None:
        version = await versions.newest(conn)
        assert version is not None, "no catalog was published"
        catalogs = versions.CatalogCache()
        sold_under = int(self.metadata.get("catalog_version", version))
        plan = (await catalogs.get(conn, sold_under)).plans[self.plan]
        await accounts_store.insert_missing(conn, {self.account_id}, now)
        await customers_store.link_customer(conn, self.account_id, f"cus_{self.account_id}", now)
        await _make_prices(conn, catalogs, version, now)
        start, end = self.period or (self.since, self.since + relativedelta(months=1))
        if self.price:
            keys = [plan.base_lookup_key(self.price), *(metered.lookup_key for metered in plan.metered_prices)]
        else:
            keys = [metered.lookup_key for metered in plan.charged(pay_as_you_go=True)]
        items = tuple(
            stripe_subscriptions.Item(
                f"si_{n}", stripe_subscriptions.ItemPrice(f"price_{key}"), self.quantity if n == 0 else 1, start, end
            )
            for n, key in enumerate(keys)
        )
        fetched = stripe_subscriptions.StripeSubscription(
            subscription_id=self.subscription_id,
            customer_id=f"cus_{self.account_id}",
            status=self.status,
            items=items,
            metadata={"catalog_version": str(version), **self.metadata},
            anchor=self.anchor or self.since,
            start_date=self.since,
            trial_end=self.anchor if self.status == "trialing" else None,
            cancel_at_period_end=False,
            cancel_at=self.cancel_at,
            canceled_at=self.ended_at,
            ended_at=self.ended_at,
        )
        await apply_subscription.apply(conn, catalogs, fetched, ORIGIN, now)


async def _make_prices(conn: AsyncConnection, catalogs: versions.CatalogCache, version: int, now: datetime) -> None:
    """Store the newest catalog's prices as `catalog apply` does; prices that are stored already stay."""
    rows = [
        {
            "price_id": f"price_{one.lookup_key}",
            "lookup_key": one.lookup_key,
            "product_id": one.product_id,
            "catalog_version": version,
            "plan": one.plan,
            "price": one.price,
            "meter": one.meter,
            "pay_as_you_go": one.pay_as_you_go,
            "stripe_event_name": one.lookup_key if one.meter else None,
            "is_current": True,
            "created_at": now,
        }
        for one in catalog_objects.wanted_prices(await catalogs.get(conn, version))
    ]
    await conn.execute(postgresql.insert(tables.stripe_prices).on_conflict_do_nothing(), rows)
