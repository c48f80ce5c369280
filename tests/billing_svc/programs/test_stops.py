"""SIGTERM under load: no call fails that was sent before, or while others listen.

`STOPS=50` makes the series that long; `make test-all` runs a short one.
"""

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from billing.v1 import usage_pb2
from tests.billing_svc import processes
from tests.billing_svc.programs import supervision

pytestmark = pytest.mark.long

STOPS = int(os.environ.get("STOPS", "2"))
CHANNELS, CALLERS = 16, 50
# An open-loop caller sends whether it was answered or not.
OPEN_PAUSE_SECONDS = 0.25
# While a client connects anew its calls gather, and then come at once: a server on a busy machine sheds some of them.
# That is an answer, and no call is lost by the stop; callers repeat it, under the same id.
SHED_PAUSE_SECONDS = 0.5
DELAY_SECONDS = 0.03
SECONDS_MAX = 60.0
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # What an attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 200),
)


class Callers:
    """`CALLERS` on `CHANNELS` connections, that record events of their own until they are told to end."""

    def __init__(self, addresses: list[str], *, closed: bool) -> None:
        """`closed`: each sends its next call when the last was answered; else at a pace of its own."""
        self.account = f"org_{uuid.uuid4().hex}"
        self.recorded = 0
        self.failed: list[str] = []
        self._closed = closed
        self._ending = asyncio.Event()
        target = f"ipv4:{','.join(addresses)}"
        self._channels = [grpc.aio.insecure_channel(target, OPTIONS) for _ in range(CHANNELS)]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as callers:
            for n in range(CALLERS):
                callers.create_task(self._call(processes.usage_stub(self._channels[n % CHANNELS])))
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def end(self) -> None:
        self._ending.set()

    async def more(self, count: int = 200) -> None:
        enough = self.recorded + count
        async with asyncio.timeout(SECONDS_MAX):
            while self.recorded < enough:  # noqa: ASYNC110 - many callers add to it
                await asyncio.sleep(0.02)

    async def _call(self, stub: Any) -> None:  # noqa: ANN401 - generated
        async with asyncio.TaskGroup() as sent:
            while not self._ending.is_set():
                if self._closed:
                    await self._record(stub)
                else:
                    sent.create_task(self._record(stub))
                    await asyncio.sleep(OPEN_PAUSE_SECONDS)

    async def _record(self, stub: Any) -> None:  # noqa: ANN401 - generated
        event = usage_pb2.RecordUsageRequest(account_id=self.account, event_id=uuid.uuid4().hex, meter="runs")
        while True:
            try:
                await stub.RecordUsage(event, timeout=20, metadata=processes.METADATA)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    await asyncio.sleep(SHED_PAUSE_SECONDS)
                    continue
                self.failed.append(f"{error.code()} {error.details()}")
            else:
                self.recorded += 1
            return


class Relay(asyncio.Protocol):
    """One side of a relayed connection: hands its bytes to the other side `DELAY_SECONDS` later."""

    def __init__(self, opened: set[asyncio.BaseTransport], to: str | None = None) -> None:
        """`to`: where the other side connects; None: this is the other side."""
        self._opened = opened
        self._to = to
        self._loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.other: asyncio.Future[Relay] = self._loop.create_future()
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._opened.add(transport)
        if self._to is not None:
            self._connecting = self._loop.create_task(self._connect(*self._to.rsplit(":")))

    def data_received(self, data: bytes) -> None:
        self._later(lambda other: other.transport.write(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._opened.discard(self.transport)
        self._later(lambda other: other.transport.close() if exc is None else other.transport.abort())

    async def _connect(self, host: str, port: str) -> None:
        try:
            _, there = await self._loop.create_connection(lambda: Relay(self._opened), host, int(port))
        except ConnectionError:
            self.other.cancel()
            self.transport.abort()
        else:
            there.other.set_result(self)
            self.other.set_result(there)

    def _later(self, act: Callable[["Relay"], object]) -> None:
        def do() -> None:
            if not self.other.done():  # it is still connecting
                self.other.add_done_callback(lambda other: other.cancelled() or act(other.result()))
            elif not self.other.cancelled():
                act(self.other.result())

        self._loop.call_later(DELAY_SECONDS, do)


@contextlib.asynccontextmanager
async def delayed(address: str) -> AsyncIterator[str]:
    """Relay each connection to an address, and yield the relay's own address."""
    opened: set[asyncio.BaseTransport] = set()
    relaying = await asyncio.get_running_loop().create_server(lambda: Relay(opened, address), "127.0.0.1")
    async with relaying:
        yield "{}:{}".format(*relaying.sockets[0].getsockname())
        for transport in tuple(opened):
            transport.close()


async def stopped_without_a_failure(
    addresses: list[str], stop: Callable[[int], Awaitable[None]], *, closed: bool
) -> None:
    """Call `stop` again and again under load."""
    callers = Callers(addresses, closed=closed)
    running = asyncio.create_task(callers.run())
    for number in range(STOPS):
        await callers.more()
        await stop(number)
    callers.end()
    await running
    assert callers.failed == [], set(callers.failed)
    async with grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", OPTIONS) as channel:
        request = usage_pb2.GetUsageRequest(account_id=callers.account, meters=["runs"])
        answer = await processes.usage_stub(channel).GetUsage(request, timeout=20, metadata=processes.METADATA)
    assert answer.meters[0].used == callers.recorded


@pytest.mark.parametrize("far", [False, True], ids=["direct", "delayed"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
@pytest.mark.usefixtures("published_catalog")
async def test_servers_replaced_in_turn_fail_no_call(
    database_url: str, tmp_path: Path, *, closed: bool, far: bool
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        pair = await stack.enter_async_context(processes.servers(database_url, tmp_path, 2, processes.STOPS_SOON))
        addresses = [one.address for one in pair]
        if far:
            addresses = [await stack.enter_async_context(delayed(one)) for one in addresses]

        async def stop(number: int) -> None:
            one = pair[number % 2]
            await one.kill(signal.SIGTERM)
            await one.start()
            # A client looks for it again after a pause; nobody else may go before.
            async with asyncio.timeout(SECONDS_MAX):
                while one.said().count('"call"') < CALLERS * 4:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)

        await stopped_without_a_failure(addresses, stop, closed=closed)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
async def test_a_worker_that_stops_beside_another_fails_no_call(
    database_url: str, published_catalog: int, tmp_path: Path, *, closed: bool
) -> None:
    assert published_catalog
    async with supervision.supervising(database_url, tmp_path / "serve.log") as supervised:

        async def stop(_number: int) -> None:
            started = len(supervised.workers())
            one = next(pid for pid in supervised.workers() if supervision.is_alive(pid))
            os.kill(one, signal.SIGTERM)
            await supervision.until(lambda: supervised.log.read_text().count('"serving"') == started + 1)

        await stopped_without_a_failure([supervised.address], stop, closed=closed)
