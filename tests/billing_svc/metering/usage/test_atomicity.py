"""Whatever fails between the first statement and COMMIT's answer, events and counters agree."""

import itertools
from collections.abc import Iterator

import grpc
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from billing.v1 import usage_pb2
from billing_svc.platform.database import direct
from tests.billing_svc import books, injecting
from tests.billing_svc.service import Billing

# More than a recording has; the test itself notices when a recording has more.
STATEMENTS_MAX = 20
ACCEPTED = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED}


@pytest.fixture(name="fault", params=["serialization failure", "deadlock", "defect", "connection lost"])
def chosen_fault(request: pytest.FixtureRequest, database_url: str) -> Iterator[injecting.Fault]:
    if request.param == "connection lost":
        assassin = injecting.Assassin(database_url)
        yield assassin
        assassin.close()
    else:
        yield {
            "serialization failure": injecting.serialization_failure,
            "deadlock": injecting.deadlock,
            "defect": injecting.defect,
        }[request.param]


def _service_engine(billing: Billing) -> AsyncEngine:
    return billing.transactions._engine  # noqa: SLF001 - nobody else needs it


async def _record(billing: Billing, event: usage_pb2.RecordUsageRequest) -> grpc.StatusCode:
    try:
        await billing.usage.RecordUsage(event)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
async def test_a_fault_at_each_statement_leaves_all_or_nothing(
    billing: Billing, fault: injecting.Fault, *, lasting: bool
) -> None:
    for at in itertools.count(1):
        assert at < STATEMENTS_MAX
        # A new account each time, so that every statement of a first event takes part.
        event = usage_pb2.RecordUsageRequest(account_id=f"org_{at}", event_id="run", meter="runs", quantity=3)
        # Captured, because a hundred rendered tracebacks take longer than all the rest.
        with capture_logs(), injecting.Faulty(_service_engine(billing), fault, at, lasting=lasting) as faulty:
            code = await _record(billing, event)
        assert code in ACCEPTED
        await billing.transactions.drain()
        await books.assert_balanced(billing.engine)
        stored = await books.event_count(billing.engine, event.account_id)
        assert stored == (code is grpc.StatusCode.OK)
        repeated = await billing.usage.RecordUsage(event)
        assert (repeated.duplicate, repeated.used) == (bool(stored), 3)
        await books.assert_balanced(billing.engine)
        if faulty.statements < at:
            break
    # Look up the event, read the facts, write the account, the counter, the event.
    assert at >= 6


async def test_a_commit_whose_answer_is_lost_is_found_by_the_repeat(
    billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = direct.commit

    async def commit_and_lose(conn: AsyncConnection) -> None:
        await commit(conn)
        direct.driver_connection(conn).pgconn.finish()
        raise psycopg.OperationalError("the connection is closed")

    event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run", meter="runs")
    with monkeypatch.context() as patch:
        patch.setattr(direct, "commit", commit_and_lose)
        assert await _record(billing, event) is grpc.StatusCode.UNAVAILABLE
    assert await books.event_count(billing.engine, "org_1") == 1
    repeated = await billing.usage.RecordUsage(event)
    assert (repeated.duplicate, repeated.used) == (True, 1)
    await books.assert_balanced(billing.engine)
