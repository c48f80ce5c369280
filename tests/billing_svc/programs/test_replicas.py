"""`serve --workers 2`: real processes on one port, killed, stopped and replaced."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import grpc
import pytest

from billing.v1 import usage_pb2
from billing_svc.programs.supervision import deaths
from tests.billing_svc import processes
from tests.billing_svc.programs.supervision import (
    POLL_SECONDS,
    SECONDS_MAX,
    Supervised,
    is_alive,
    start,
    supervising,
    until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over processes")

CHANNELS = 16


@pytest.fixture
async def supervised(database_url: str, published_catalog: int, tmp_path: Path) -> AsyncIterator[Supervised]:
    assert published_catalog
    async with supervising(database_url, tmp_path / "serve.log") as running:
        yield running


def connections(pid: int, port: int) -> int:
    """Count the connections that a process has accepted on a port."""
    # gRPC listens on IPv4 through sockets of IPv6.
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    table = [line.split() for line in lines]
    accepted = {f"socket:[{one[9]}]" for one in table if one[1].endswith(f":{port:04X}") and one[3] == "01"}
    count = 0
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(handle.readlink()) in accepted
    return count


class Load:
    """Callers, each on a connection of its own, that record one event after the other until told to stop."""

    def __init__(self, running: Supervised, *, repeat: bool) -> None:
        """`repeat`: send an event again, under its id, when the outcome is unknown."""
        self.account = f"org_{uuid.uuid4().hex}"
        self.recorded = 0
        self.failed: list[grpc.aio.AioRpcError] = []
        self._repeat = repeat
        self._stop = asyncio.Event()
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200))
        self._channels = [grpc.aio.insecure_channel(running.address, options) for _ in range(CHANNELS)]

    async def __aenter__(self) -> Self:
        self._callers = [asyncio.create_task(self._call(channel)) for channel in self._channels]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def finish(self) -> None:
        """Begin no further calls, and wait for those under way."""
        self._stop.set()
        async with asyncio.timeout(SECONDS_MAX):
            await asyncio.gather(*self._callers)

    async def more(self, count: int = 200) -> None:
        """Wait until so many more were recorded."""
        enough = self.recorded + count
        await until(lambda: self.recorded >= enough)

    async def _call(self, channel: grpc.aio.Channel) -> None:
        stub = processes.usage_stub(channel)
        while not self._stop.is_set():
            event_id = uuid.uuid4().hex
            request = usage_pb2.RecordUsageRequest(account_id=self.account, event_id=event_id, meter="runs")
            while True:
                try:
                    await stub.RecordUsage(request, timeout=20, metadata=processes.METADATA)
                except grpc.aio.AioRpcError as error:
                    self.failed.append(error)
                    if self._repeat and error.code() is grpc.StatusCode.UNAVAILABLE:
                        await asyncio.sleep(POLL_SECONDS)
                        continue
                else:
                    self.recorded += 1
                break


async def counted(running: Supervised, account: str) -> int:
    request = usage_pb2.GetUsageRequest(account_id=account, meters=["runs"])
    async with grpc.aio.insecure_channel(running.address) as channel:
        answer = await processes.usage_stub(channel).GetUsage(request, timeout=20, metadata=processes.METADATA)
    return answer.meters[0].used


async def test_both_workers_answer_and_a_killed_one_is_replaced_while_calls_go_on(supervised: Supervised) -> None:
    async with Load(supervised, repeat=True) as load:
        await load.more()
        first, second = supervised.workers()
        assert connections(first, supervised.port) > 0
        assert connections(second, supervised.port) > 0
        os.kill(first, signal.SIGKILL)
        await load.more()
        await until(lambda: len(supervised.workers()) == 3)
        third = supervised.workers()[2]
        await until(lambda: supervised.log.read_text().count('"serving"') == 3)
        # Whoever connects from now on may meet it.
        async with Load(supervised, repeat=True) as later:
            await until(lambda: connections(third, supervised.port) > 0)
            await later.more()
        await load.finish()
        assert {error.code() for error in load.failed} <= {grpc.StatusCode.UNAVAILABLE}
        assert await counted(supervised, load.account) == load.recorded


async def test_a_worker_that_is_stopped_drains_and_is_replaced_without_a_failed_call(supervised: Supervised) -> None:
    async with Load(supervised, repeat=False) as load:
        await load.more()
        first, _ = supervised.workers()
        os.kill(first, signal.SIGTERM)
        await until(lambda: len(supervised.workers()) == 3)
        await load.more()
        await load.finish()
        assert load.failed == []
        assert await counted(supervised, load.account) == load.recorded


async def test_a_stop_drains_all_without_a_failed_call(supervised: Supervised) -> None:
    async with Load(supervised, repeat=False) as load:
        await load.more()
        # Each caller has a call under way, and begins no other.
        finished = asyncio.create_task(load.finish())
        await asyncio.sleep(0)
        supervised.process.terminate()
        await finished
        assert load.failed == []
    assert await supervised.ended() == 0
    assert not any(map(is_alive, supervised.workers()))


async def test_the_parent_gives_up_when_a_worker_keeps_dying(supervised: Supervised) -> None:
    _, second = supervised.workers()
    killed: set[int] = set()
    while len(killed) < deaths.DEATHS_MAX:
        await until(lambda: bool(set(supervised.workers()) - killed - {second}))
        for pid in set(supervised.workers()) - killed - {second}:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    assert await supervised.ended() == 1
    assert not is_alive(second)
    assert "worker 0 was ended by SIGKILL, 5 times" in supervised.log.read_text()


async def test_the_workers_die_with_their_parent(supervised: Supervised) -> None:
    supervised.process.kill()
    await until(lambda: not any(map(is_alive, supervised.workers())))


@pytest.mark.parametrize("shares", [False, True])
async def test_a_port_that_a_stranger_listens_on_is_refused(
    database_url: str, published_catalog: int, tmp_path: Path, *, shares: bool
) -> None:
    assert published_catalog
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        running = await start(database_url, stranger.getsockname()[1], tmp_path / "serve.log")
        assert await running.ended() == 1
        said = running.log.read_text()
        assert "cannot listen on" in said
        assert "Address already in use" in said
        assert running.workers() == []
