"""Counting by many callers and several processes at once."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.v1 import decision_pb2, quota_pb2, usage_pb2, usage_pb2_grpc
from billing_svc.platform.accounts import store as accounts_store
from tests.billing_svc import books, processes
from tests.billing_svc.service import Billing

# UNAVAILABLE and ABORTED ask for a repeat; a busy machine may need some.
REPEATS_MAX = 20

Record = Callable[[usage_pb2.RecordUsageRequest], "asyncio.Future[usage_pb2.RecordUsageResponse]"]


@pytest.fixture(name="record")
async def record_by_two_processes(database_url: str, tmp_path: Path, published_catalog: int) -> AsyncIterator[Record]:
    """Records through two server processes in turn, as a client does: with the same id until it is answered."""
    assert published_catalog
    async with processes.servers(database_url, tmp_path, 2) as started:
        channels = [one.channel() for one in started for _ in range(2)]
        stubs = itertools.cycle([processes.usage_stub(channel) for channel in channels])

        async def call(event: usage_pb2.RecordUsageRequest) -> usage_pb2.RecordUsageResponse:
            for _ in range(REPEATS_MAX):
                try:
                    return await next(stubs).RecordUsage(event, metadata=processes.METADATA)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}:
                        raise
            raise AssertionError("never answered")

        yield lambda event: asyncio.ensure_future(call(event))
        for channel in channels:
            await channel.close()


async def test_two_hundred_events_at_once_are_all_counted(record: Record, engine: AsyncEngine) -> None:
    events = [usage_pb2.RecordUsageRequest(account_id="org_1", event_id=f"run_{n}", meter="runs") for n in range(200)]
    answers = await asyncio.gather(*map(record, events))
    # Each one saw a total of its own: nobody counted from a stale one.
    assert sorted(answer.used for answer in answers) == list(range(1, 201))
    assert await books.used(engine, "org_1") == await books.event_count(engine, "org_1") == 200
    await books.assert_balanced(engine)


async def test_two_hundred_that_may_be_rejected_admit_exactly_the_limit(record: Record, engine: AsyncEngine) -> None:
    events = [
        usage_pb2.RecordUsageRequest(
            account_id="org_1", event_id=f"run_{n}", meter="runs", if_exceeded=usage_pb2.IF_EXCEEDED_REJECT
        )
        for n in range(200)
    ]
    answers = await asyncio.gather(*map(record, events))
    assert Counter(answer.decision for answer in answers) == {
        decision_pb2.DECISION_ALLOWED: 5,
        decision_pb2.DECISION_DENIED: 195,
    }
    assert await books.used(engine, "org_1") == await books.event_count(engine, "org_1") == 5
    await books.assert_balanced(engine)


async def test_first_events_of_many_accounts_and_meters_at_once(billing: Billing) -> None:
    events = [
        usage_pb2.RecordUsageRequest(account_id=f"org_{n % 4}", event_id=f"run_{n}", meter=("runs", "reports")[n % 2])
        for n in range(80)
    ]
    await asyncio.gather(*(billing.usage.RecordUsage(event) for event in events))
    assert [await books.used(billing.engine, f"org_{n}") for n in range(4)] == [20] * 4
    await books.assert_balanced(billing.engine)


@pytest.mark.parametrize("catalog_name", ["orgs"])
async def test_first_events_at_once_share_the_period_that_their_account_s_signup_begins(
    engine: AsyncEngine, replicas: list["usage_pb2_grpc.UsageServiceAsyncStub"], billing: Billing
) -> None:
    """Whichever of them makes the account, the others count in its period, not in one of their own."""

    async def record(n: int) -> usage_pb2.RecordUsageResponse:
        event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id=f"e_{n}", meter="exports", quantity=3)
        event.if_exceeded = usage_pb2.IF_EXCEEDED_REJECT
        return await replicas[n].RecordUsage(event)

    async with engine.connect() as holder:
        # None of them knows the account yet; each then waits for this one, which is given up.
        await accounts_store.insert_missing(holder, {"org_1"}, billing.clock.now())
        calls = [asyncio.create_task(record(n)) for n in range(len(replicas))]
        await books.wait_for_waiters(engine, len(calls))
        await holder.rollback()
    answers = await asyncio.gather(*calls)
    assert sum(answer.decision == decision_pb2.DECISION_ALLOWED for answer in answers) == 3
    check = await billing.quota.CheckQuota(quota_pb2.CheckQuotaRequest(account_id="org_1", meter="exports"))
    assert check.used == 9


@pytest.mark.parametrize("catalog_name", ["orgs"])
async def test_a_first_event_that_happened_a_minute_ago_counts_in_the_first_period(billing: Billing) -> None:
    event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="e_1", meter="exports", quantity=10)
    event.occurred_at.GetCurrentTime()
    event.occurred_at.seconds -= 60
    await billing.usage.RecordUsage(event)
    check = await billing.quota.CheckQuota(quota_pb2.CheckQuotaRequest(account_id="org_1", meter="exports"))
    assert (check.used, check.decision) == (10, decision_pb2.DECISION_DENIED)
