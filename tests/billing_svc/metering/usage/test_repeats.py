"""An acknowledged event counts once, for good, and its answer never changes."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.v1 import decision_pb2, usage_pb2, usage_pb2_grpc
from billing_svc.catalog import loading, versions
from tests.billing_svc import books, processes, refusals
from tests.billing_svc.service import CATALOGS, Billing

Request = usage_pb2.RecordUsageRequest
Response = usage_pb2.RecordUsageResponse
Replicas = list["usage_pb2_grpc.UsageServiceAsyncStub"]


def _event(**changes: object) -> Request:
    given: dict[str, object] = {"account_id": "org_1", "event_id": "run_1", "meter": "runs"}
    return Request(**(given | changes))  # type: ignore[arg-type]  # a message's fields


def _as_duplicate(first: Response) -> Response:
    repeated = Response()
    repeated.CopyFrom(first)
    repeated.duplicate = True
    return repeated


async def test_a_repeat_gives_the_first_answer_again_whatever_happened_since(
    billing: Billing, database_url: str, tmp_path: Path
) -> None:
    event = _event(quantity=3, properties={"model": "large", "empty": ""})
    event.occurred_at.FromDatetime(billing.clock.now() - timedelta(seconds=1))
    first = await billing.usage.RecordUsage(event)
    assert (first.duplicate, first.used, first.cost, first.remaining) == (False, 3, 3, 2)
    expected = _as_duplicate(first)
    assert await billing.usage.RecordUsage(event) == expected
    await billing.usage.RecordUsage(_event(event_id="run_2", quantity=9))
    assert await billing.usage.RecordUsage(event) == expected
    await books.subscribe(billing.engine, "org_1", "pro", since=billing.clock.now())
    assert await billing.usage.RecordUsage(event) == expected
    newer = loading.load_file(CATALOGS / "kalshibook.yaml")
    await billing.transactions.run(lambda conn: versions.publish(conn, newer, "operator:test", billing.clock.now()))
    refusal = await refusals.refused(billing.usage.RecordUsage(_event(event_id="run_3")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "METER_NOT_FOUND")
    assert await billing.usage.RecordUsage(event) == expected
    async with processes.servers(database_url, tmp_path, 1) as (other,), other.channel() as channel:
        assert await processes.usage_stub(channel).RecordUsage(event, metadata=processes.METADATA) == expected
    for days in (1, 40, 500):
        billing.clock.advance(timedelta(days=days))
        assert await billing.usage.RecordUsage(event) == expected
    assert await books.used(billing.engine, "org_1") == 12
    await books.assert_balanced(billing.engine)


def _sets(**fields: object) -> Callable[[Request], None]:
    def change(event: Request) -> None:
        for name, value in fields.items():
            event.ClearField(name)  # type: ignore[arg-type]  # its names are literals
            if value is not None:
                setattr(event, name, value)

    return change


def _occurs(seconds: int, nanos: int = 0) -> Callable[[Request], None]:
    def change(event: Request) -> None:
        event.occurred_at.seconds += seconds
        event.occurred_at.nanos += nanos

    return change


def _properties(**properties: str | None) -> Callable[[Request], None]:
    def change(event: Request) -> None:
        for name, value in properties.items():
            if value is None:
                del event.properties[name]
            else:
                event.properties[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_sets(meter="reports"), id="another meter"),
        pytest.param(_sets(meter=None, operation="anything"), id="an operation"),
        pytest.param(_sets(quantity=2), id="another quantity"),
        pytest.param(_sets(quantity=None), id="quantity left out"),
        pytest.param(_sets(quantity=None, level=1), id="a level"),
        pytest.param(_sets(quantity=10**12), id="a huge quantity"),
        pytest.param(_sets(occurred_at=None), id="occurred_at left out"),
        pytest.param(_occurs(seconds=1), id="a second later"),
        pytest.param(_occurs(seconds=0, nanos=1_000), id="a microsecond later"),
        pytest.param(_occurs(seconds=3_600), id="an occurred_at that would be refused"),
        pytest.param(_properties(a="2"), id="another value"),
        pytest.param(_properties(a=None), id="a property less"),
        pytest.param(_properties(b=""), id="a property more"),
        pytest.param(_properties(a=None, b="1"), id="another key"),
    ],
)
async def test_the_same_id_with_other_content_is_refused(billing: Billing, change: Callable[[Request], None]) -> None:
    event = _event(quantity=1, properties={"a": "1"})
    event.occurred_at.FromDatetime(billing.clock.now().replace(microsecond=5))
    await billing.usage.RecordUsage(event)
    before = await books.contents(billing.engine)
    changed = Request()
    changed.CopyFrom(event)
    change(changed)
    assert changed != event
    refusal = await refusals.refused(billing.usage.RecordUsage(changed))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EVENT_ID_REUSED")
    assert refusal.domain == "billing.internal"
    assert refusal.metadata == {"event_id": "run_1"}
    assert await books.contents(billing.engine) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"if_exceeded": usage_pb2.IF_EXCEEDED_REJECT},
        {"if_exceeded": usage_pb2.IF_EXCEEDED_RECORD},
        {"retry_attempt": 3},
    ],
)
async def test_what_is_not_content_may_differ(billing: Billing, changes: dict[str, object]) -> None:
    first = await billing.usage.RecordUsage(_event(quantity=5))
    assert await billing.usage.RecordUsage(_event(quantity=5, **changes)) == _as_duplicate(first)
    assert await books.used(billing.engine, "org_1") == 5


async def test_two_accounts_may_use_the_same_id(billing: Billing) -> None:
    for account_id in ("org_1", "org_2"):
        answer = await billing.usage.RecordUsage(_event(account_id=account_id))
        assert (answer.duplicate, answer.used) == (False, 1)
    assert await books.event_count(billing.engine, "org_1") == await books.event_count(billing.engine, "org_2") == 1


async def test_a_retry_under_its_own_id_is_kept_and_counts_nothing(billing: Billing) -> None:
    await billing.usage.RecordUsage(_event(quantity=5))
    retry = _event(event_id="run_1_again", quantity=5, retry_attempt=1, if_exceeded=usage_pb2.IF_EXCEEDED_REJECT)
    answer = await billing.usage.RecordUsage(retry)
    assert (answer.decision, answer.used, answer.cost) == (decision_pb2.DECISION_ALLOWED, 5, 0)
    assert await billing.usage.RecordUsage(retry) == _as_duplicate(answer)
    assert await books.event_count(billing.engine, "org_1") == 2


@pytest.mark.usefixtures("published_catalog")
async def test_the_same_event_fifty_times_at_once_over_two_processes_counts_once(
    billing: Billing, database_url: str, tmp_path: Path
) -> None:
    event = _event(quantity=2, properties={"a": "1"})
    async with processes.servers(database_url, tmp_path, 2) as (one, other):
        channels = [server.channel() for server in (one, one, other, other)]
        stubs = itertools.cycle([processes.usage_stub(channel) for channel in channels])
        calls = [next(stubs).RecordUsage(event, metadata=processes.METADATA) for _ in range(50)]
        answers = await asyncio.gather(*calls)
        for channel in channels:
            await channel.close()
    assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 49
    assert {(answer.used, answer.cost, answer.remaining) for answer in answers} == {(2, 2, 3)}
    assert await books.event_count(billing.engine, "org_1") == 1
    assert await books.used(billing.engine, "org_1") == 2


async def test_a_repeat_that_waits_for_the_first_is_not_denied_the_unit_that_the_first_took(
    engine: AsyncEngine, replicas: Replicas
) -> None:
    await replicas[0].RecordUsage(_event(event_id="before", quantity=4))
    event = _event(if_exceeded=usage_pb2.IF_EXCEEDED_REJECT)
    async with engine.begin() as holder:
        await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
        calls = [asyncio.create_task(_await(one.RecordUsage(event))) for one in replicas]
        await books.wait_for_waiters(engine, len(calls))
    answers = await asyncio.gather(*calls)
    assert {(answer.decision, answer.used) for answer in answers} == {(decision_pb2.DECISION_ALLOWED, 5)}
    assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 5
    assert await books.used(engine, "org_1") == 5


async def _await(call: Awaitable[Response]) -> Response:
    return await call


async def test_the_same_id_with_different_contents_at_once_is_one_event(billing: Billing) -> None:
    events = [_event(quantity=n + 1) for n in range(20)]
    results = await asyncio.gather(*(billing.usage.RecordUsage(event) for event in events), return_exceptions=True)
    won = [n for n, result in enumerate(results) if isinstance(result, Response)]
    assert len(won) == 1
    lost = [refusals.of(result).reason for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert lost == ["EVENT_ID_REUSED"] * 19
    assert await books.used(billing.engine, "org_1") == won[0] + 1
