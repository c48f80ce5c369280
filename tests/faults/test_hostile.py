"""Hostile bytes at the gateway and at the gRPC port: no 500, no INTERNAL, no hang, and no growth of memory."""

import asyncio
import contextlib
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil  # type: ignore[import-untyped]  # it has none
import pytest

from tests import ports
from tests.billing_svc import processes, refusals
from tests.faults import fuzzing, loads, runs
from tests.webhook_gateway import process as gateway_process
from tests.webhook_gateway.conftest import SECRET, TOKEN, ScriptedService, serve_grpc

pytestmark = pytest.mark.long

# For a call. Postgres and the service take milliseconds; Stripe cannot be reached, so its calls fail at once.
ANSWER_SECONDS_MAX = 10.0
AT_ONCE = 8
# If all promised bytes have arrived, the gateway answers sooner.
PROMISE_SECONDS_MAX = 0.3
GROWTH_BYTES_MAX = 48 * 1024 * 1024
# These mean a defect, or a hang.
BAD = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
# HTTP's own answers for methods and versions that are not implemented.
GATEWAY_MAY_SAY = {501, 505}


async def for_a_while(seconds: float, once: Callable[[random.Random], Any], run: runs.Run, pid: int) -> int:
    """Repeat `once`, several at a time, and return how often; fails if the process's memory has grown.

    Large messages use memory for a moment; what counts is the lowest value of a longer interval.
    """
    began = time.monotonic()
    looked_at, taken = psutil.Process(pid), list[int]()

    async def go_on(number: int) -> None:
        rng = run.rng("hostile", number)
        while time.monotonic() - began < seconds:
            await once(rng)
            taken.append(looked_at.memory_info().rss)

    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(go_on(number))
    assert looked_at.is_running()
    # Memory that is allocated once, for prepared statements for example, is allocated in the first third.
    third = len(taken) // 3
    grown = min(taken[2 * third :]) - min(taken[third : 2 * third])
    # A short run has handled few large messages.
    most = GROWTH_BYTES_MAX if run.minutes else 3 * GROWTH_BYTES_MAX
    assert grown < most, f"it grew by {grown:,} bytes"
    run.count(grown_KiB=grown // 1024)
    return len(taken)


@contextlib.asynccontextmanager
async def one_server(url: str, folder: Path) -> AsyncIterator[processes.ServerProcess]:
    await loads.prepare(url)
    async with processes.servers(url, folder, 1) as (started,):
        yield started


async def test_no_message_breaks_an_rpc(database_url: str, run: runs.Run, tmp_path: Path) -> None:
    async with one_server(database_url, tmp_path) as started, started.channel() as channel:
        assert started.process is not None
        codes: Counter[str] = Counter()
        methods = fuzzing.rpcs()
        calls: dict[str, Any] = {name: channel.unary_unary(name) for name in methods}

        async def call(rng: random.Random) -> None:
            fuzzer, name = fuzzing.Fuzzer(rng), rng.choice(list(methods))
            payload = fuzzer.noise() if rng.random() < 0.2 else fuzzer.fill(methods[name]()).SerializeToString()
            try:
                await calls[name](payload, timeout=ANSWER_SECONDS_MAX, metadata=fuzzer.metadata())
            except grpc.aio.AioRpcError as error:
                away = error.code() is grpc.StatusCode.UNAVAILABLE
                if error.code() in BAD or (away and refusals.of(error).reason != "STRIPE_UNAVAILABLE"):
                    raise AssertionError(name, payload) from error
                codes[error.code().name] += 1
            else:
                codes["OK"] += 1
            run.count(answered=sum(codes.values()))

        await for_a_while(run.seconds(3, 0.2), call, run, started.process.pid)
        run.count(**{code.lower(): number for code, number in codes.items()})
    assert "Traceback" not in started.log.read_text()
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED"} <= codes.keys()


async def test_bytes_that_are_no_http2_do_not_disturb_the_server(
    database_url: str, run: runs.Run, tmp_path: Path
) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    async with one_server(database_url, tmp_path) as started:
        assert started.process is not None

        async def throw(rng: random.Random) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", started.port)
            with contextlib.suppress(ConnectionError):
                # The bytes after the preface are read as frames.
                writer.write(rng.choice((b"", preface, preface)) + fuzzing.Fuzzer(rng).noise())
                await writer.drain()
                if rng.random() < 0.5:
                    await asyncio.wait_for(reader.read(100), 1)
            writer.transport.abort()

        thrown = await for_a_while(run.seconds(1, 0.05), suppressing_silence(throw), run, started.process.pid)
        async with started.channel() as channel:
            await asyncio.wait_for(channel.channel_ready(), ANSWER_SECONDS_MAX)
    run.count(connections=thrown)


def suppressing_silence(once: Callable[[random.Random], Any]) -> Callable[[random.Random], Any]:
    """Accept that a server waits for the rest of a frame."""

    async def run_once(rng: random.Random) -> None:
        with contextlib.suppress(TimeoutError):
            await once(rng)

    return run_once


@contextlib.asynccontextmanager
async def gateway_on(port: int, grpc_port: int, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    told = {
        "STRIPE_WEBHOOK_SECRETS": SECRET,
        "BILLING_GRPC_TOKEN": TOKEN,
        "BILLING_GRPC_TARGET": f"127.0.0.1:{grpc_port}",
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
    }
    command = (sys.executable, "-m", "webhook_gateway")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env=gateway_process.environment(**told), stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(processes.READY_SECONDS_MAX):
            while is_closed(port):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.05)
        yield process
    finally:
        process.kill()
        await process.wait()


async def answer_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return an answer's first line. Ends the sending side, so that a waiting server knows that no more will come."""
    line = asyncio.ensure_future(reader.readline())
    done, _ = await asyncio.wait({line}, timeout=PROMISE_SECONDS_MAX)
    if not done:
        writer.write_eof()
    return await asyncio.wait_for(line, ANSWER_SECONDS_MAX)


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_no_request_breaks_the_gateway(run: runs.Run, tmp_path: Path) -> None:
    port, statuses, log = ports.free_port(), Counter[int](), tmp_path / "gateway.log"
    async with serve_grpc(ScriptedService()) as grpc_port, gateway_on(port, grpc_port, log) as gateway:

        async def send(rng: random.Random) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                writer.write(fuzzing.Fuzzer(rng).request())
                head = await answer_to(reader, writer)
                if head:
                    status = int(head.split()[1])
                    assert status < 500 or status in GATEWAY_MAY_SAY, head
                    statuses[status] += 1
            writer.transport.abort()
            run.count(requests=sum(statuses.values()))

        await for_a_while(run.seconds(2, 0.1), send, run, gateway.pid)
        run.count(**{f"answered_{status}": number for status, number in sorted(statuses.items())})
    assert {200, 400} <= statuses.keys()
    lines = log.read_text().splitlines()
    assert [line for line in lines if "Traceback" in line] == []
