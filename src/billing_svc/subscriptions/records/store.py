"""Subscription rows, customers and prices in Postgres."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import tables
from billing_svc.subscriptions.records import rules

_SUBSCRIPTIONS = tables.subscriptions
_CUSTOMERS = tables.stripe_customers
_PRICES = tables.stripe_prices


@dataclass(frozen=True, slots=True)
class SoldPrice:
    """What a price at Stripe stands for: a plan's price, or a charged meter of it (the other one is empty)."""

    price_id: str
    catalog_version: int
    plan: str
    price: str
    meter: str


@dataclass(frozen=True, slots=True)
class Row:
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
        return self.status in rules.OVER

    @property
    def will_end(self) -> bool:
        """Say whether its end is scheduled."""
        return self.cancel_at_period_end or self.cancel_at is not None

    @property
    def is_giving(self) -> bool:
        """Say whether its status gives what it is for."""
        return self.status in rules.GIVING

    def goes_on(self, at: datetime) -> bool:
        """Say whether it has not come to its end at `at`, also where Stripe has not told of that yet."""
        return not self.is_over and (self.effective_until is None or at < self.effective_until)

    def gives_plan(self, at: datetime) -> bool:
        """Say whether the account has its plan at `at`, as far as it alone decides."""
        in_time = self.effective_from <= at and (self.effective_until is None or at < self.effective_until)
        return self.is_plan and self.is_giving and in_time


@dataclass(frozen=True, slots=True)
class Previous:
    """What was known of a subscription before a fetch."""

    plan: str
    price: str
    catalog_version: int
    interval: rules.Interval
    superfluous: bool


async def account_of_customer(conn: AsyncConnection, customer_id: str) -> str | None:
    """Return the account that a customer at Stripe belongs to; None if it is not ours."""
    query = sa.select(_CUSTOMERS.c.account_id).where(_CUSTOMERS.c.customer_id == customer_id)
    return (await conn.execute(query)).scalar_one_or_none()


async def customer_of_account(conn: AsyncConnection, account_id: str) -> str | None:
    """Return the account's customer at Stripe; None if it has none."""
    query = sa.select(tables.accounts.c.customer_id).where(tables.accounts.c.account_id == account_id)
    return (await conn.execute(query)).scalar_one_or_none()


async def link_customer(conn: AsyncConnection, account_id: str, customer_id: str, now: datetime) -> bool:
    """Remember the account's customer, in both directions; returns whether it had none before.

    The first one stays. One that came late is remembered as the account's all the same: its events are ours.
    """
    await conn.execute(
        postgresql.insert(_CUSTOMERS)
        .values(customer_id=customer_id, account_id=account_id, linked_at=now)
        .on_conflict_do_nothing()
    )
    account = tables.accounts.c
    linked = await conn.execute(
        sa.update(tables.accounts)
        .where(account.account_id == account_id, account.customer_id.is_(None))
        .values(customer_id=customer_id)
    )
    return linked.rowcount == 1


async def sold_prices(conn: AsyncConnection, price_ids: Collection[str]) -> dict[str, SoldPrice]:
    """Return what prices at Stripe stand for; those that never were ours are missing."""
    columns = (_PRICES.c.price_id, _PRICES.c.catalog_version, _PRICES.c.plan, _PRICES.c.price, _PRICES.c.meter)
    rows = await conn.execute(sa.select(*columns).where(_PRICES.c.price_id.in_(price_ids)))
    return {row.price_id: SoldPrice(*row) for row in rows}


async def prices_of_version(conn: AsyncConnection, lookup_keys: Collection[str], version: int) -> dict[str, str]:
    """Return the price id that each lookup key stood for in a catalog version; unknown keys are missing.

    A price comes with the version that first has it, and holds until a later version brings another.
    """
    rows = await conn.execute(
        sa.select(_PRICES.c.lookup_key, _PRICES.c.price_id)
        .where(_PRICES.c.lookup_key.in_(lookup_keys), _PRICES.c.catalog_version <= version)
        .order_by(_PRICES.c.catalog_version, _PRICES.c.is_current)
    )
    # The last one of a key stays.
    return {row.lookup_key: row.price_id for row in rows}


async def lock_account(conn: AsyncConnection, account_id: str) -> None:
    """Let one change of the account's subscriptions happen at a time."""
    query = sa.select(tables.accounts.c.account_id).where(tables.accounts.c.account_id == account_id)
    await conn.execute(query.with_for_update())


async def plan_subscriptions(conn: AsyncConnection, account_id: str) -> list[Row]:
    """Return the account's plan subscriptions, the latest first; those that are over as well."""
    return [row for row in await subscriptions(conn, account_id) if row.is_plan]


async def plan_subscriptions_of(conn: AsyncConnection, account_ids: Collection[str]) -> dict[str, list[Row]]:
    """Return the plan subscriptions of many accounts, the latest first; an account without one is missing."""
    columns = [_SUBSCRIPTIONS.c[name] for name in Row.__dataclass_fields__]
    rows = await conn.execute(
        sa.select(_SUBSCRIPTIONS.c.account_id, *columns)
        .where(_SUBSCRIPTIONS.c.account_id.in_(account_ids), _SUBSCRIPTIONS.c.is_plan)
        .order_by(_SUBSCRIPTIONS.c.effective_from.desc(), _SUBSCRIPTIONS.c.subscription_id)
    )
    found: dict[str, list[Row]] = {}
    for account_id, *values in rows:
        found.setdefault(account_id, []).append(Row(*values))
    return found


async def subscriptions(conn: AsyncConnection, account_id: str) -> list[Row]:
    """Return the account's subscriptions, the latest first; metered-only ones and those that are over as well."""
    columns = [_SUBSCRIPTIONS.c[name] for name in Row.__dataclass_fields__]
    rows = await conn.execute(
        sa.select(*columns)
        .where(_SUBSCRIPTIONS.c.account_id == account_id)
        .order_by(_SUBSCRIPTIONS.c.effective_from.desc(), _SUBSCRIPTIONS.c.subscription_id)
    )
    return [Row(*row) for row in rows]


async def living_of_customer(conn: AsyncConnection, customer_id: str) -> list[str]:
    """Return the subscriptions of a customer that are not over; none if it is not ours."""
    account_id = await account_of_customer(conn, customer_id)
    if account_id is None:
        return []
    query = sa.select(_SUBSCRIPTIONS.c.subscription_id).where(
        _SUBSCRIPTIONS.c.account_id == account_id,
        _SUBSCRIPTIONS.c.customer_id == customer_id,
        _SUBSCRIPTIONS.c.status.not_in(rules.OVER),
    )
    return list((await conn.execute(query)).scalars())


async def find(conn: AsyncConnection, account_id: str, subscription_id: str) -> Previous | None:
    """Return what is stored of a subscription; None if it is new."""
    columns = ("plan", "price", "catalog_version", "effective_from", "effective_until", "superfluous")
    query = sa.select(*(_SUBSCRIPTIONS.c[name] for name in columns)).where(*_is(account_id, subscription_id))
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        return None
    interval = rules.Interval(row.effective_from, row.effective_until)
    return Previous(row.plan, row.price, row.catalog_version, interval, row.superfluous)


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
