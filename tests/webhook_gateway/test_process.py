"""The gateway as a process: how it starts, what it logs, how it ends."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest

from tests import ports
from tests.webhook_gateway.conftest import SECRET, TOKEN, ScriptedService, event_body, open_door, serve_grpc, sign
from tests.webhook_gateway.process import environment


@pytest.mark.parametrize(
    ("changed", "variable"),
    [
        ({"BILLING_GRPC_TOKEN": TOKEN}, "STRIPE_WEBHOOK_SECRETS"),
        ({"STRIPE_WEBHOOK_SECRETS": SECRET}, "BILLING_GRPC_TOKEN"),
    ],
)
def test_without_a_usable_secret_the_gateway_exits_2_with_one_sentence(changed: dict[str, str], variable: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "webhook_gateway"],
        env=environment(**changed),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert ended.returncode == 2
    assert variable in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@asynccontextmanager
async def run_gateway(grpc_port: int, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "webhook_gateway",
        env=environment(
            STRIPE_WEBHOOK_SECRETS=SECRET,
            BILLING_GRPC_TOKEN=TOKEN,
            BILLING_GRPC_TARGET=f"127.0.0.1:{grpc_port}",
            GATEWAY_LISTEN=f"127.0.0.1:{port}",
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            while True:
                try:
                    await client.get(f"http://127.0.0.1:{port}/healthz")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_finishes_what_is_under_way_and_exits_0(service: ScriptedService, number: signal.Signals) -> None:
    service.delay_seconds = 0.7
    port = ports.free_port()
    async with (
        serve_grpc(service) as grpc_port,
        run_gateway(grpc_port, port) as process,
        open_door(service, port) as door,
    ):
        delivery = asyncio.create_task(door.post(event_body(), sign(event_body())))
        while service.calls == 0:  # noqa: ASYNC110 - the call comes from another process
            await asyncio.sleep(0.01)
        process.send_signal(number)
        refusals = 0
        while not delivery.done():
            try:
                await door.client.get("/healthz")
            except httpx.HTTPError:
                refusals += 1
            await asyncio.sleep(0.05)

        assert (await delivery).status_code == 200
        assert refusals > 0  # no new request was accepted in the meantime
        assert await asyncio.wait_for(process.wait(), 10) == 0
    assert service.stored == {"evt_1": event_body()}


async def test_every_line_of_the_gateway_is_json_and_none_holds_a_body_a_secret_or_a_signature(
    service: ScriptedService,
) -> None:
    raw = event_body(name="Erika Mustermann")
    signed = sign(raw)
    port = ports.free_port()
    async with (
        serve_grpc(service) as grpc_port,
        run_gateway(grpc_port, port) as process,
        open_door(service, port) as door,
    ):
        await door.post(raw, signed)
        await door.post(raw + b" ", signed)
        async with door.connect() as (reader, writer):
            writer.write(b"Erika\r\n\r\n")  # not HTTP
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        process.terminate()
        assert process.stdout is not None
        written = (await process.stdout.read()).decode()

    lines = [json.loads(line) for line in written.splitlines()]
    requests = [line for line in lines if line["event"] == "request" and line["reason"] != "alive"]
    assert [(line["status"], line["level"], line["event_id"]) for line in requests] == [
        (200, "info", "evt_1"),
        (400, "info", None),
    ]
    for hidden in ("Erika", SECRET, TOKEN, signed[-20:]):
        assert hidden not in written


@contextmanager
def occupied_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_an_occupied_port_ends_the_gateway_with_a_line_that_says_so() -> None:
    with occupied_port() as port:
        ended = subprocess.run(
            [sys.executable, "-m", "webhook_gateway"],
            env=environment(
                STRIPE_WEBHOOK_SECRETS=SECRET, BILLING_GRPC_TOKEN=TOKEN, GATEWAY_LISTEN=f"127.0.0.1:{port}"
            ),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    assert ended.returncode != 0
    assert "address already in use" in ended.stdout
