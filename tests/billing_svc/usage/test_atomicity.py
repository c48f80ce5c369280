"""Whatever fails between the first statement and COMMIT's answer, events and counters agree."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from billing.v1 import usage_pb2
from billing_svc.database import direct
from billing_svc.database import engine as engines
from tests.billing_svc import books
from tests.billing_svc.conftest import Billing

# More than a recording has; the test itself notices when a recording has more.
STATEMENTS_MAX = 20
ACCEPTED = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED}

# What happens at a statement; gets the id of its backend.
Fault = Callable[[int], None]


def _serialization_failure(_pid: int) -> None:
    raise psycopg.errors.SerializationFailure


def _deadlock(_pid: int) -> None:
    raise psycopg.errors.DeadlockDetected


def _defect(_pid: int) -> None:
    raise ZeroDivisionError


class _Assassin:
    """Ends a backend, from a connection of its own."""

    def __init__(self, url: str) -> None:
        arguments = engines.driver_url(url).translate_connect_args(username="user", database="dbname")
        self._connection = psycopg.connect(autocommit=True, **arguments)

    def __call__(self, pid: int) -> None:
        self._connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(name="fault", params=["serialization failure", "deadlock", "defect", "connection lost"])
def chosen_fault(request: pytest.FixtureRequest, database_url: str) -> Iterator[Fault]:
    if request.param == "connection lost":
        assassin = _Assassin(database_url)
        yield assassin
        assassin.close()
    else:
        yield {"serialization failure": _serialization_failure, "deadlock": _deadlock, "defect": _defect}[request.param]


class _Faulty:
    """Lets a fault happen at the nth statement that an engine runs, once or each time."""

    def __init__(self, engine: AsyncEngine, fault: Fault, at: int, *, lasting: bool) -> None:
        self._engine, self._fault, self._at, self._lasting = engine, fault, at, lasting
        self._patch = pytest.MonkeyPatch()
        self.statements = 0

    def _count(self, pid: int) -> None:
        self.statements += 1
        if self.statements == self._at or (self._lasting and self.statements > self._at):
            self._fault(pid)

    def _execute(self, cursor: Any, *_: object) -> None:  # noqa: ANN401
        self._count(cursor._connection.driver_connection.info.backend_pid)  # noqa: SLF001 - there is no other way

    def __enter__(self) -> Self:
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            sa.event.listen(self._engine.sync_engine, name, self._execute)
        fetch_each = direct.fetch_each

        async def counted(conn: AsyncConnection, *calls: direct.Call) -> list[list[direct.Row]]:
            # One by one, so that faults come between the statements of a round trip too.
            rows = []
            for call in calls:
                self._count(direct.driver_connection(conn).info.backend_pid)
                rows += await fetch_each(conn, call)
            return rows

        self._patch.setattr(direct, "fetch_each", counted)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            sa.event.remove(self._engine.sync_engine, name, self._execute)


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
    billing: Billing, fault: Fault, *, lasting: bool
) -> None:
    for at in itertools.count(1):
        assert at < STATEMENTS_MAX
        # A new account each time, so that every statement of a first event takes part.
        event = usage_pb2.RecordUsageRequest(account_id=f"org_{at}", event_id="run", meter="runs", quantity=3)
        # Captured, because a hundred rendered tracebacks take longer than all the rest.
        with capture_logs(), _Faulty(_service_engine(billing), fault, at, lasting=lasting) as faulty:
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
    # Of the service's engine too, which is another one than the test's.
    dialect = type(billing.engine.sync_engine.dialect)
    commit = dialect.do_commit

    def commit_and_lose(self: Any, connection: Any) -> None:  # noqa: ANN401
        commit(self, connection)
        connection.driver_connection.pgconn.finish()
        raise psycopg.OperationalError("the connection is closed")

    event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run", meter="runs")
    with monkeypatch.context() as patch:
        patch.setattr(dialect, "do_commit", commit_and_lose)
        assert await _record(billing, event) is grpc.StatusCode.UNAVAILABLE
    assert await books.event_count(billing.engine, "org_1") == 1
    repeated = await billing.usage.RecordUsage(event)
    assert (repeated.duplicate, repeated.used) == (True, 1)
    await books.assert_balanced(billing.engine)
