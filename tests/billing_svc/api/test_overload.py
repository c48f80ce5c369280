"""More calls than the server can hold: the excess is turned away, nothing is lost, and it recovers by itself."""

import asyncio
from pathlib import Path

import grpc
import psutil  # type: ignore[import-untyped]  # ships without type hints
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.v1 import usage_pb2, usage_pb2_grpc
from billing_svc.platform import batching
from billing_svc.programs import server
from tests.billing_svc import books, processes, refusals

# More than twice all that may wait or be under way, in our sight and out of it.
CALLS = 3 * (batching.QUEUE_MAX + batching.BATCH_MAX + server.CALLS_OUTSIDE_MAX)
WAVES = 3
GROWTH_BYTES_MAX = 25_000_000
# By the service, and by gRPC's core before the service sees the call.
SHED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}


async def _record(stub: "usage_pb2_grpc.UsageServiceAsyncStub", account_id: str, n: int) -> grpc.aio.AioRpcError | None:
    event = usage_pb2.RecordUsageRequest(account_id=account_id, event_id=f"run_{n}", meter="runs")
    try:
        await stub.RecordUsage(event, metadata=processes.METADATA)
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.mark.usefixtures("published_catalog")
async def test_what_is_too_much_is_shed_and_all_else_is_kept(
    database_url: str, engine: AsyncEngine, tmp_path: Path
) -> None:
    async with processes.servers(database_url, tmp_path, 1) as (one,), one.channel() as channel:
        assert one.process is not None
        process = psutil.Process(one.process.pid)
        stub = processes.usage_stub(channel)
        sizes = []
        for wave in range(WAVES):
            account = f"org_{wave}"
            outcomes = await asyncio.gather(*(_record(stub, account, n) for n in range(CALLS)))
            sizes.append(process.memory_info().rss)
            refused = [error for error in outcomes if error is not None]
            assert {error.code() for error in refused} <= SHED
            told = [refusals.of(error) for error in refused if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
            assert all(refusal.reason == "OVERLOADED" and refusal.retry_after_seconds for refusal in told)
            assert 0 < len(refused) < CALLS
            # What was answered is stored, and nothing that was shed.
            assert await books.event_count(engine, account) == CALLS - len(refused)
            # The load has fallen, and nobody is turned away any more.
            assert await asyncio.gather(*(_record(stub, f"{account}_after", n) for n in range(100))) == [None] * 100
        await books.assert_balanced(engine)
        assert sizes[-1] - sizes[0] < GROWTH_BYTES_MAX
