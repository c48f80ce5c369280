"""The order in which a transaction takes its locks: while it waits for a row, it holds none that comes later."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from billing_svc.catalog import loading, versions
from billing_svc.platform import clock
from billing_svc.platform.database import tables
from billing_svc.platform.database import transactions as transactions_module
from tests.billing_svc import books
from tests.billing_svc.service import CATALOGS, Billing

ORDER = (tables.accounts, tables.usage_counters, tables.gauge_levels, tables.reservations, tables.rate_windows)


@pytest.fixture
async def published_catalog(transactions: transactions_module.Transactions) -> int:
    """A plan with all that a transaction can lock: gauges, and a rate limit."""
    text = (CATALOGS / "orgs.yaml").read_text()
    limited = text.replace("  solo:\n", "  solo:\n    rate_limit: {requests: 30, per: minute}\n", 1)
    catalog = loading.load_text(limited.replace("projects: {included: 1,", "projects: {included: 9,", 1), "limited")
    now = clock.Clock().now()
    version, _ = await transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", now))
    return version


async def _hold(billing: Billing, request_id: str) -> quota_pb2.CheckQuotaResponse:
    question = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="projects", reserve=True, request_id=request_id)
    return await billing.quota.CheckQuota(question)


async def _record(billing: Billing, reservation_id: str) -> usage_pb2.BatchRecordUsageResponse:
    """Settle a hold, and record an event that takes a place in the rate window."""
    events = [
        usage_pb2.RecordUsageRequest(
            account_id="org_1",
            event_id=f"event_{named}",
            meter="projects",
            reservation_id=named,
            if_exceeded=usage_pb2.IF_EXCEEDED_REJECT,
        )
        for named in (reservation_id, "")
    ]
    return await billing.usage.BatchRecordUsage(usage_pb2.BatchRecordUsageRequest(events=events))


async def _free(conn: AsyncConnection, table: sa.Table) -> int:
    """Return how many rows nobody has locked."""
    query = sa.select(table.c.account_id).with_for_update(skip_locked=True)
    return len((await conn.execute(query)).all())


@pytest.mark.parametrize(
    ("call", "waits_for"),
    [(call, table) for call in (_hold, _record) for table in ORDER],
    ids=lambda value: str(value.name) if isinstance(value, sa.Table) else value.__name__.strip("_"),
)
async def test_who_waits_for_a_row_holds_no_lock_that_comes_later(
    billing: Billing, call: Callable[[Billing, str], Awaitable[object]], waits_for: sa.Table
) -> None:
    # A hold whose time is over, which the next call closes, and one that is held.
    held = [await _hold(billing, f"job_{n}") for n in range(2)]
    assert {one.decision for one in held} == {decision_pb2.DECISION_ALLOWED}
    async with billing.engine.begin() as conn:
        over = sa.update(tables.reservations).where(tables.reservations.c.reservation_id == held[0].reservation_id)
        await conn.execute(over.values(expires_at=billing.clock.now() - timedelta(seconds=1)))
    async with billing.engine.connect() as blocking:
        await blocking.execute(sa.select(waits_for.c.account_id).with_for_update())
        waiting = asyncio.ensure_future(call(billing, held[1].reservation_id))
        await books.wait_for_waiters(billing.engine, 1)
        async with billing.engine.connect() as looking:
            later = ORDER[ORDER.index(waits_for) + 1 :]
            free = {table.name: await _free(looking, table) for table in later}
            assert free == {table.name: await _rows(looking, table) for table in later}
        await blocking.rollback()
    await waiting


async def _rows(conn: AsyncConnection, table: sa.Table) -> int:
    return int(await conn.scalar(sa.select(sa.func.count()).select_from(table)) or 0)
