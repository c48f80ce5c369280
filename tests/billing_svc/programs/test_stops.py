"""SIGTERM under load: no call fails that was sent before, or while others listen.

`STOPS=50` makes the series that long; `make test` runs a short one.
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
from tests import ports
from tests.billing_svc import processes
from tests.billing_svc.programs.supervision import test_replicas

STOPS = int(os.environ.get("STOPS", "2"))
CHANNELS, CALLERS = 16, 50
# An open-loop caller sends whether it was answered or not.
OPEN_PAUSE_SECONDS = 0.1
DELAY_SECONDS = 0.03
SECONDS_MAX = 60.0
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
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
        try:
            await stub.RecordUsage(event, timeout=20, metadata=processes.METADATA)
        except grpc.aio.AioRpcError as error:
            self.failed.append(f"{error.code()} {error.details()}")
        else:
            self.recorded += 1


@contextlib.asynccontextmanager
async def delayed(address: str, seconds: float) -> AsyncIterator[str]:
    """Relay each connection to an address with its bytes `seconds` later, and yield the relay's own address."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            piece = b"."
            while piece:
                try:
                    piece = await reader.read(65_536)
                except ConnectionError:
                    piece = b""
                pieces.put_nowait((loop.time() + seconds, piece))

        reading = asyncio.create_task(read())
        with contextlib.suppress(ConnectionError):
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(due - loop.time())
                if not piece:
                    break
                writer.write(piece)
        writer.close()
        await reading

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except ConnectionError:
            writer.transport.abort()  # type: ignore[attr-defined]  # typed as its base
            return
        await asyncio.gather(relay(reader, back), relay(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", ports.free_port())
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


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
    assert callers.failed == []
    async with grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", OPTIONS) as channel:
        request = usage_pb2.GetUsageRequest(account_id=callers.account, meters=["runs"])
        answer = await processes.usage_stub(channel).GetUsage(request, timeout=20, metadata=processes.METADATA)
    assert answer.meters[0].used == callers.recorded


@pytest.mark.parametrize("delay_seconds", [0, DELAY_SECONDS], ids=["direct", "delayed"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
@pytest.mark.usefixtures("published_catalog")
async def test_servers_replaced_in_turn_fail_no_call(
    database_url: str, tmp_path: Path, *, closed: bool, delay_seconds: float
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        pair = await stack.enter_async_context(processes.servers(database_url, tmp_path, 2))
        addresses = [one.address for one in pair]
        if delay_seconds:
            addresses = [await stack.enter_async_context(delayed(one, delay_seconds)) for one in addresses]

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
    async with test_replicas.supervising(database_url, tmp_path / "serve.log") as supervised:

        async def stop(_number: int) -> None:
            started = len(supervised.workers())
            one = next(pid for pid in supervised.workers() if test_replicas.is_alive(pid))
            os.kill(one, signal.SIGTERM)
            await test_replicas.until(lambda: supervised.log.read_text().count('"serving"') == started + 1)

        await stopped_without_a_failure([supervised.address], stop, closed=closed)
