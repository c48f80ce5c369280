"""What must hold in the database whatever happened, and a way to set up what Stripe would have told."""

import asyncio
from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from billing_svc.platform.database import tables

# Shorter than the lock_timeout of those that wait.
WAIT_SECONDS_MAX = 1.5

_EVENTS = sa.text("""
    SELECT account_id, meter, period_start, sum(units), sum(billable)
      FROM usage_events GROUP BY account_id, meter, period_start
""")
_COUNTERS = sa.text("SELECT account_id, meter, period_start, used, billable FROM usage_counters WHERE used <> 0")


async def assert_balanced(engine: AsyncEngine) -> None:
    """Assert that the events of every counter add up to it. Of consumables: a gauge's counter is its peak."""
    async with engine.connect() as connection:
        events = {tuple(row) for row in await connection.execute(_EVENTS) if row[3]}
        counters = {tuple(row) for row in await connection.execute(_COUNTERS)}
    assert events == counters


async def wait_for_waiters(engine: AsyncEngine, count: int) -> None:
    """Return when so many sessions of this database wait for a lock. `engine` is one that nobody has exhausted."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(WAIT_SECONDS_MAX), engine.connect() as connection:
        while await connection.scalar(query) != count:
            await connection.rollback()


async def used(engine: AsyncEngine, account_id: str) -> int:
    """Return what an account's counters hold together."""
    query = sa.select(sa.func.coalesce(sa.func.sum(tables.usage_counters.c.used), 0))
    async with engine.connect() as connection:
        return int(await connection.scalar(query.where(tables.usage_counters.c.account_id == account_id)) or 0)


async def event_count(engine: AsyncEngine, account_id: str) -> int:
    """Return how many events of an account are stored."""
    query = sa.select(sa.func.count()).where(tables.usage_events.c.account_id == account_id)
    async with engine.connect() as connection:
        return int(await connection.scalar(query) or 0)


async def row_counts(engine: AsyncEngine) -> Mapping[str, int]:
    """Return the number of rows of every table."""
    async with engine.connect() as connection:
        return {
            name: int(await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)
            for name, table in tables.metadata.tables.items()
        }


async def contents(engine: AsyncEngine) -> Mapping[str, list[str]]:
    """Return every row of every table as text."""
    async with engine.connect() as connection:
        return {
            name: sorted((await connection.execute(sa.text(f"SELECT t::text FROM {name} t"))).scalars())  # noqa: S608
            for name in tables.metadata.tables
        }


async def subscribe(  # noqa: PLR0913 - one argument for each column that a decision reads
    engine: AsyncEngine,
    account_id: str,
    plan: str,
    *,
    since: datetime,
    anchor: datetime | None = None,
    until: datetime | None = None,
    catalog_version: int = 1,
    status: str = "active",
    subscription_id: str = "sub_1",
) -> None:
    """Put a subscription where the Stripe worker would; an account of that name need not exist."""
    row = {
        "account_id": account_id,
        "subscription_id": subscription_id,
        "customer_id": f"cus_{account_id}",
        "status": status,
        "plan": plan,
        "price": "monthly",
        "catalog_version": catalog_version,
        "is_plan": True,
        "quantity": 1,
        "anchor": anchor or since,
        "billing_period_start": since,
        "billing_period_end": since,
        "cancel_at_period_end": False,
        "effective_from": since,
        "effective_until": until,
        "updated_at": since,
    }
    async with engine.begin() as connection:
        await connection.execute(sa.insert(tables.subscriptions), row)
