"""Subscription rows in Postgres."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.customers import store as customers_store
from billing_svc.platform.database import tables
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import rules

_SUBSCRIPTIONS = tables.subscriptions


@dataclass(frozen=True, slots=True)
class SubscriptionRecord:
    """A subscription as stored."""

    subscription_id: str
    status: str
    is_plan: bool
    plan: str
    price: str
    catalog_version: int
    quantity: int
    billing_period_start: datetime
    billing_period_end: datetime
    trial_end: datetime | None
    cancel_at_period_end: bool
    cancel_at: datetime | None
    ended_at: datetime | None
    effective_from: datetime
    effective_until: datetime | None
    checkout_id: str | None
    superfluous: bool
    schedule_id: str | None
    pending_plan: str | None
    pending_price: str | None
    pending_quantity: int | None
    pending_at: datetime | None

    @property
    def is_over(self) -> bool:
        """Say whether it has ended for good, so that another one may be bought."""
        return self.status in stripe_subscriptions.OVER

    @property
    def will_end(self) -> bool:
        """Say whether its end is scheduled."""
        return self.cancel_at_period_end or self.cancel_at is not None

    @property
    def is_giving(self) -> bool:
        """Say whether its status gives what it is for."""
        return self.status in stripe_subscriptions.GIVING

    def goes_on(self, at: datetime) -> bool:
        """Say whether it has not come to its end at `at`, also where Stripe has not told of that yet."""
        return not self.is_over and (self.effective_until is None or at < self.effective_until)

    def gives_plan(self, at: datetime) -> bool:
        """Say whether the account has its plan at `at`, as far as it alone decides."""
        in_time = self.effective_from <= at and (self.effective_until is None or at < self.effective_until)
        return self.is_plan and self.is_giving and in_time


@dataclass(frozen=True, slots=True)
class KnownSubscription:
    """What was known of a subscription before a fetch."""

    plan: str
    price: str
    catalog_version: int
    interval: rules.Interval
    superfluous: bool


async def plan_subscriptions(conn: AsyncConnection, account_id: str) -> list[SubscriptionRecord]:
    """Return the account's plan subscriptions, the latest first; those that are over as well."""
    return [row for row in await subscriptions(conn, account_id) if row.is_plan]


async def plan_subscriptions_of(
    conn: AsyncConnection, account_ids: Collection[str]
) -> dict[str, list[SubscriptionRecord]]:
    """Return the plan subscriptions of many accounts, the latest first; an account without one is missing."""
    columns = [_SUBSCRIPTIONS.c[name] for name in SubscriptionRecord.__dataclass_fields__]
    rows = await conn.execute(
        sa.select(_SUBSCRIPTIONS.c.account_id, *columns)
        .where(_SUBSCRIPTIONS.c.account_id.in_(account_ids), _SUBSCRIPTIONS.c.is_plan)
        .order_by(_SUBSCRIPTIONS.c.effective_from.desc(), _SUBSCRIPTIONS.c.subscription_id)
    )
    found: dict[str, list[SubscriptionRecord]] = {}
    for account_id, *values in rows:
        found.setdefault(account_id, []).append(SubscriptionRecord(*values))
    return found


async def subscriptions(conn: AsyncConnection, account_id: str) -> list[SubscriptionRecord]:
    """Return the account's subscriptions, the latest first; metered-only ones and those that are over as well."""
    columns = [_SUBSCRIPTIONS.c[name] for name in SubscriptionRecord.__dataclass_fields__]
    rows = await conn.execute(
        sa.select(*columns)
        .where(_SUBSCRIPTIONS.c.account_id == account_id)
        .order_by(_SUBSCRIPTIONS.c.effective_from.desc(), _SUBSCRIPTIONS.c.subscription_id)
    )
    return [SubscriptionRecord(*row) for row in rows]


async def living_of_customer(conn: AsyncConnection, customer_id: str) -> list[str]:
    """Return the subscriptions of a customer that are not over; none if it is not ours."""
    account_id = await customers_store.account_of_customer(conn, customer_id)
    if account_id is None:
        return []
    query = sa.select(_SUBSCRIPTIONS.c.subscription_id).where(
        _SUBSCRIPTIONS.c.account_id == account_id,
        _SUBSCRIPTIONS.c.customer_id == customer_id,
        _SUBSCRIPTIONS.c.status.not_in(stripe_subscriptions.OVER),
    )
    return list((await conn.execute(query)).scalars())


async def find(conn: AsyncConnection, account_id: str, subscription_id: str) -> KnownSubscription | None:
    """Return what is stored of a subscription; None if it is new."""
    columns = ("plan", "price", "catalog_version", "effective_from", "effective_until", "superfluous")
    query = sa.select(*(_SUBSCRIPTIONS.c[name] for name in columns)).where(*_is(account_id, subscription_id))
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        return None
    interval = rules.Interval(row.effective_from, row.effective_until)
    return KnownSubscription(row.plan, row.price, row.catalog_version, interval, row.superfluous)


async def save(
    conn: AsyncConnection, account_id: str, subscription_id: str, values: Mapping[str, Any], now: datetime
) -> bool:
    """Write a subscription as of the last fetch; returns whether that changed anything."""
    row = {"account_id": account_id, "subscription_id": subscription_id, **values, "updated_at": now}
    changed = sa.or_(*(_SUBSCRIPTIONS.c[name].is_distinct_from(value) for name, value in values.items()))
    result = await conn.execute(
        postgresql.insert(_SUBSCRIPTIONS)
        .values(row)
        .on_conflict_do_update(
            index_elements=[_SUBSCRIPTIONS.c.account_id, _SUBSCRIPTIONS.c.subscription_id], set_=row, where=changed
        )
        .returning(_SUBSCRIPTIONS.c.subscription_id)
    )
    return result.scalar_one_or_none() is not None


async def mark_superfluous(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> None:
    """Let a subscription never have given its plan."""
    values = {"superfluous": True, "effective_until": _SUBSCRIPTIONS.c.effective_from, "updated_at": now}
    await conn.execute(sa.update(_SUBSCRIPTIONS).where(*_is(account_id, subscription_id)).values(values))


def _is(account_id: str, subscription_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_SUBSCRIPTIONS.c.account_id == account_id, _SUBSCRIPTIONS.c.subscription_id == subscription_id)
