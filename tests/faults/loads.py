"""Callers that make requests to server processes, while a test damages what is behind them."""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncEngine

from billing_svc.catalog import loading, versions
from billing_svc.platform import clock
from billing_svc.platform.database import embedded, transactions
from billing_svc.platform.database import engine as engines
from tests.billing_svc import processes
from tests.billing_svc.service import CATALOGS
from tests.faults import callers, ledger, runs

CALLERS = 16
ACCOUNTS = ("org_0", "org_1", "org_2")
STRICT_LIMIT = 40
# Enough for the callers' reservations: these accounts do not test limits.
PLENTY = 10**9
RECOVERY_SECONDS_MAX = 60
# A child process of a killed server may hold its memory for a moment.
START_SECONDS_MAX = 20.0


def patient(_rng: random.Random) -> float:
    return callers.CALL_SECONDS_MAX


@dataclass(slots=True)
class Load:
    """Callers, and the servers that they call."""

    run: runs.Run
    crowd: Sequence[callers.Caller]
    servers: Sequence[callers.Server] = ()
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self, **figures: int) -> None:
        self.run.count(**figures, **callers.figures(self.crowd))

    async def more(self, calls: int = 200) -> None:
        """Wait until so many more calls were made: the damaged part works again."""
        enough = sum(caller.calls for caller in self.crowd) + calls
        async with asyncio.timeout(RECOVERY_SECONDS_MAX):
            while sum(caller.calls for caller in self.crowd) < enough:  # noqa: ASYNC110 - many callers add to it
                await asyncio.sleep(0.02)

    async def settle(self) -> None:
        """Let the callers find out the unknown outcomes."""
        await asyncio.gather(
            *(caller.settle(self.servers[n % len(self.servers)]) for n, caller in enumerate(self.crowd))
        )


def callers_of(
    run: runs.Run, accounts: Sequence[str] = ACCOUNTS, deadline: Callable[[random.Random], float] = patient
) -> list[callers.Caller]:
    return [callers.Caller(str(n), run.rng(n), accounts, deadline=deadline) for n in range(CALLERS)]


@contextlib.asynccontextmanager
async def working(load: Load, processes_: Sequence[processes.ServerProcess]) -> AsyncIterator[Load]:
    """Run the load; at the end every outcome is known."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(one.channel()) for one in processes_]
        load.servers = [callers.Server(channel) for channel in channels]
        async with asyncio.TaskGroup() as group:
            for caller in load.crowd:
                group.create_task(caller.work(load.servers, load.stop))
            yield load
            load.stop.set()
        await load.settle()


async def prepare(url: str) -> None:
    """Publish a catalog, and give the accounts what the callers use."""
    owner, service = engines.create_engine(url, role=None), engines.create_engine(url)
    catalog, now = loading.load_file(CATALOGS / "nyqst.yaml"), clock.Clock().now()
    await transactions.Transactions(service).run(lambda conn: versions.publish(conn, catalog, "operator:test", now))
    for account_id in ACCOUNTS:
        await ledger.give(owner, account_id, PLENTY, now)
    await ledger.give(owner, "strict", STRICT_LIMIT, now)
    await owner.dispose()
    await service.dispose()


async def assert_kept(load: Load, url: str) -> None:
    """Assert that the database has what the callers know, and that enough was called and interrupted."""
    engine: AsyncEngine = engines.create_engine(url, role=None)
    await ledger.assert_kept(engine, load.crowd, STRICT_LIMIT)
    await engine.dispose()
    assert load.run.figures["outcomes_unknown"], "no fault met a call"


def end_and_start(postgres: embedded.EmbeddedPostgres, number: int) -> None:
    """Kill the server, and start it again."""
    assert postgres.pid is not None
    os.kill(postgres.pid, number)
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        postgres.stop()
        try:
            postgres.start()
        except embedded.EmbeddedPostgresError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
