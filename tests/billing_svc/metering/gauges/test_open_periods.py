"""Opening a gauge's period where nothing is recorded: whatever races, its peak is the level that it begins with."""

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from billing.v1 import usage_pb2
from billing_svc.catalog import versions
from billing_svc.metering.gauges import open_periods
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.database import tables
from tests.billing_svc import books
from tests.billing_svc.service import Billing


@pytest.fixture
def catalog_name() -> str:
    return "agentplatform"


def _seats(event_id: str, level: int) -> usage_pb2.RecordUsageRequest:
    return usage_pb2.RecordUsageRequest(account_id="org_1", event_id=event_id, meter="user_seats", level=level)


async def _buy(billing: Billing) -> None:
    """Do what the worker does when a subscription has appeared."""
    now = billing.clock.now()
    await books.subscribe(billing.engine, "org_1", "standard", since=now)
    await billing.transactions.run(lambda conn: gauges_store.reopen(conn, "org_1", now))


async def _open(billing: Billing) -> None:
    catalogs = versions.CatalogCache()
    await billing.transactions.run(lambda conn: open_periods.open_due(conn, catalogs, billing.clock.now()))


async def _billable(billing: Billing) -> int:
    query = sa.select(sa.func.sum(tables.usage_counters.c.billable))
    async with billing.engine.connect() as conn:
        return int((await conn.execute(query)).scalar_one())


@pytest.mark.parametrize("before", [[], [3]], ids=["a new gauge", "one that was recorded before"])
async def test_a_plan_that_is_bought_while_a_level_is_recorded_bills_that_level(
    billing: Billing, before: list[int]
) -> None:
    await billing.usage.RecordUsage(_seats("first", before[0]) if before else _tokens())
    async with billing.engine.begin() as holder:
        # The recording has read its terms and waits; the plan comes in between.
        if before:
            await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
        else:
            await holder.execute(sa.text("LOCK TABLE usage_counters IN EXCLUSIVE MODE"))
        recording = asyncio.ensure_future(billing.usage.RecordUsage(_seats("second", 27)))
        await books.wait_for_waiters(billing.engine, 1)
        await _buy(billing)
    await recording
    await _open(billing)
    assert await _billable(billing) == 2


def _tokens() -> usage_pb2.RecordUsageRequest:
    return usage_pb2.RecordUsageRequest(account_id="org_1", event_id="first", meter="llm_tokens")


async def test_a_plan_that_is_bought_while_a_period_is_opened_opens_its_own(billing: Billing) -> None:
    await billing.usage.RecordUsage(_seats("first", 27))
    billing.clock.advance(timedelta(days=32))
    async with billing.engine.begin() as holder:
        # The opening has read its terms and waits; the plan comes in between, or after.
        await holder.execute(sa.text("LOCK TABLE usage_counters IN EXCLUSIVE MODE"))
        opened = asyncio.ensure_future(_open(billing))
        await books.wait_for_waiters(billing.engine, 1)
        bought = asyncio.ensure_future(_apply(billing))
        await asyncio.wait({bought}, timeout=0.3)
    await asyncio.gather(opened, bought)
    await _open(billing)
    assert await _billable(billing) == 2


async def _apply(billing: Billing) -> None:
    """Do what the worker does when a subscription has appeared, behind its lock of the account."""
    now = billing.clock.now()
    async with billing.engine.begin() as conn:
        await accounts_store.lock(conn, "org_1")
        await books.subscribe(billing.engine, "org_1", "standard", since=now)
        await gauges_store.reopen(conn, "org_1", now)
