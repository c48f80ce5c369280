"""A server process killed under load: what it acknowledged is counted, once, and nothing else is.

`BILLING_TEST_KILLS` makes the run longer, `BILLING_TEST_SEED` chooses another one.
"""

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.v1 import decision_pb2, usage_pb2, usage_pb2_grpc
from billing_svc import clock
from billing_svc.catalog import loading, versions
from billing_svc.database import tables, transactions
from tests.billing_svc import books, processes
from tests.billing_svc.conftest import CATALOGS

KILLS = int(os.environ.get("BILLING_TEST_KILLS", "5"))
SEED = int(os.environ.get("BILLING_TEST_SEED", "1"))
CLIENTS = 8
ACCOUNTS = 3
# Of the calls, so many repeat one that was sent before.
REPEATS_SHARE = 0.3
REJECTS_SHARE = 0.2
RUNS_INCLUDED = 5
CALL_SECONDS_MAX = 2.0
# What a call may end with when its server dies: whether it was done is unknown. Anything else is a defect.
UNKNOWN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}

Request = usage_pb2.RecordUsageRequest
Response = usage_pb2.RecordUsageResponse


@dataclass(slots=True)
class Client:
    """One caller, with its log of what it knows about each event that it sent."""

    number: int
    rng: random.Random
    sent: dict[str, Request] = field(default_factory=dict)
    acknowledged: dict[str, Response] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    was_unknown: int = 0

    def next(self) -> Request:
        """Return a new event, or one that was sent before."""
        if self.sent and self.rng.random() < REPEATS_SHARE:
            return self.rng.choice(list(self.sent.values()))
        event = Request(
            account_id=f"org_{self.rng.randrange(ACCOUNTS)}",
            event_id=f"run_{self.number}_{len(self.sent)}",
            meter="runs",
            quantity=self.rng.randint(1, 9),
        )
        if self.rng.random() < REJECTS_SHARE:
            event.account_id, event.quantity = "strict", 1
            event.if_exceeded = usage_pb2.IF_EXCEEDED_REJECT
        self.sent[event.event_id] = event
        return event

    async def record(self, stub: "usage_pb2_grpc.UsageServiceAsyncStub", event: Request) -> None:
        """Send an event and note what is known of it then."""
        key = event.event_id
        try:
            # Waiting for a server that is gone, instead of failing at once, keeps the load from spinning.
            answer = await stub.RecordUsage(
                event, metadata=processes.METADATA, timeout=CALL_SECONDS_MAX, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            if error.code() not in UNKNOWN:
                raise
            if key not in self.acknowledged:
                self.unknown.add(key)
                self.was_unknown += 1
            return
        if answer.decision == decision_pb2.DECISION_DENIED:
            assert key not in self.acknowledged, "an acknowledged event was denied"
            self.unknown.discard(key)
            return
        first = self.acknowledged.get(key)
        if first is not None:
            first.duplicate = True
            assert answer == first
        else:
            assert key in self.unknown or not answer.duplicate, "a new event was taken for a duplicate"
        self.unknown.discard(key)
        self.acknowledged[key] = answer


async def _load(client: Client, server: processes.ServerProcess, stop: asyncio.Event) -> None:
    async with server.channel() as channel:
        stub = processes.usage_stub(channel)
        while not stop.is_set():
            await client.record(stub, client.next())


async def _settle(client: Client, server: processes.ServerProcess) -> None:
    async with server.channel() as channel:
        await channel.channel_ready()
        stub = processes.usage_stub(channel)
        while client.unknown:
            await client.record(stub, client.sent[min(client.unknown)])


@pytest.fixture(name="rng")
def seeded() -> random.Random:
    # pytest shows it with a failure.
    print(f"BILLING_TEST_SEED={SEED} BILLING_TEST_KILLS={KILLS}")  # noqa: T201
    return random.Random(SEED)  # noqa: S311 - repeatable, not secret


async def test_a_killed_server_loses_and_doubles_nothing(
    database_url: str,
    engine: AsyncEngine,
    transactions: transactions.Transactions,
    rng: random.Random,
    tmp_path: Path,
) -> None:
    catalog = loading.load_file(CATALOGS / "nyqst.yaml")
    await transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", clock.Clock().now()))
    clients = [Client(n, random.Random(rng.random())) for n in range(CLIENTS)]  # noqa: S311 - as above
    async with processes.servers(database_url, tmp_path, 1) as (server,), asyncio.TaskGroup() as group:
        stop = asyncio.Event()
        tasks = [group.create_task(_load(client, server, stop)) for client in clients]
        for _ in range(KILLS):
            await asyncio.sleep(rng.uniform(0.05, 0.8))
            await server.kill()
            await server.start()
        stop.set()
        await asyncio.gather(*tasks)
        await asyncio.gather(*(_settle(client, server) for client in clients))

    acknowledged = {key: client.sent[key] for client in clients for key in client.acknowledged}
    assert len(acknowledged) > 20 * KILLS, "the load was too light to tell anything"
    assert any(client.was_unknown for client in clients), "no kill met a call"
    assert not any(client.unknown for client in clients)
    await books.assert_balanced(engine)
    events = tables.usage_events.c
    query = sa.select(events.account_id, events.event_id, events.units)
    async with engine.connect() as connection:
        stored = {row.event_id: (row.account_id, row.units) for row in await connection.execute(query)}
    assert stored == {key: (event.account_id, event.quantity) for key, event in acknowledged.items()}
    for account_id in {event.account_id for event in acknowledged.values()}:
        units = sum(event.quantity for event in acknowledged.values() if event.account_id == account_id)
        assert await books.used(engine, account_id) == units
    assert await books.used(engine, "strict") == RUNS_INCLUDED
