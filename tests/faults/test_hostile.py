"""Hostile bytes at the gateway and at the gRPC port: no 500, no INTERNAL, no hang, and no growth."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.protobuf import descriptor, message, message_factory, symbol_database

from billing_svc import server
from billing_svc.database import embedded
from tests.billing_svc import processes, refusals
from tests.faults import loads, runs
from tests.webhook_gateway.conftest import SECRET, ScriptedService, serve_grpc
from tests.webhook_gateway.test_process import run_gateway

# Of one call. Postgres and our own work take milliseconds; Stripe, which is away here, is given up at once.
ANSWER_SECONDS_MAX = 10.0
AT_ONCE = 8
# What is allocated once, such as prepared statements, is there after the first share of a run.
WARM_SHARE = 0.4
GROWTH_BYTES_MAX = 32 * 1024 * 1024
# HTTP's own answers to what nobody implements.
GATEWAY_MAY_SAY = {501, 505}

Field = descriptor.FieldDescriptor

STRINGS = (
    "", " ", "\0", "org_1", "org_2", "runs", "reports", "pro", "free", "monthly", "strict", "run_1", "a" * 128, "a" * 129,
    "a" * 100_000, "\u202e\ufeff", "é", "🦉" * 40, "org_1'; DROP TABLE accounts --", "%s%n{0}", "../../etc/passwd", "-1",
    "https://app.example.com/x", "javascript:alert(1)", "http://[::1", "a@b.c", "AAAA", "e30=", "eyJhIjoxfQ", "sub_1",
)  # fmt: skip
INTEGERS = (0, 1, -1, 2, 5, 100, 1000, 5001, 10**12, 10**12 + 1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
SECONDS = (0, 1, -1, 253402300799, 253402300800, -62135596800, -62135596801, 2**63 - 1, -(2**63))


def rpcs() -> dict[str, type[message.Message]]:
    """Return every RPC with its request, as the contract has them."""
    pool = symbol_database.Default().pool
    return {
        f"/{service}/{method.name}": message_factory.GetMessageClass(method.input_type)
        for service in server.SERVICES
        for method in pool.FindServiceByName(service).methods
    }


@dataclass(frozen=True)
class Fuzzer:
    """Draws what no honest client sends."""

    rng: random.Random

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 1, 2, 7, 40, 300, 5_000)))

    def fill(self, made: message.Message, depth: int = 0) -> message.Message:
        """Set some of a message's fields to extreme values."""
        for field in made.DESCRIPTOR.fields:
            if self.rng.random() < 0.3 or depth > 3:
                continue
            if field.is_repeated:
                for _ in range(self.rng.choice((1, 2, 60))):
                    self._add(made, field, depth)
            elif field.type == Field.TYPE_MESSAGE:
                self.fill(getattr(made, field.name), depth + 1)
                getattr(made, field.name).SetInParent()
            else:
                setattr(made, field.name, self._value(field))
        return made

    def _add(self, made: message.Message, field: descriptor.FieldDescriptor, depth: int) -> None:
        values = getattr(made, field.name)
        if field.message_type is None:
            values.append(self._value(field))
        elif field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            values[self._value(key)] = self._value(value)
        else:
            self.fill(values.add(), depth + 1)

    def _value(self, field: descriptor.FieldDescriptor) -> Any:  # noqa: ANN401 - by its type
        match field.type:
            case Field.TYPE_STRING:
                return self.rng.choice(STRINGS)
            case Field.TYPE_BYTES:
                return self.event() if self.rng.random() < 0.7 else self.noise()
            case Field.TYPE_BOOL:
                return self.rng.random() < 0.5
            case Field.TYPE_INT64:
                return self.rng.choice(SECONDS if field.name == "seconds" else INTEGERS)
            case Field.TYPE_ENUM:
                return self.rng.choice((0, 1, 2, 3, 99, -1, 2**31 - 1))
            case _:
                return self.rng.choice([one for one in INTEGERS if -(2**31) <= one < 2**31])

    def event(self) -> bytes:
        """Return an event of Stripe's, or something like one."""
        event = {
            "id": self.rng.choice(("evt_1", "evt_\0", "", 7, None, "e" * 300, f"evt_{self.rng.random()}")),
            "type": self.rng.choice(("customer.subscription.updated", "invoice.paid", "a.b", 1, None, "\ud800")),
            "created": self.rng.choice((0, 10**40, -1, "x", None, 1.5)),
            "livemode": self.rng.choice((False, True, None, "no")),
            "data": self.rng.choice(
                ({"object": {"id": "sub_1", "customer": {"id": "\0"}}}, {"object": []}, [], None, {})
            ),
        }
        for name in list(event):
            if self.rng.random() < 0.1:
                del event[name]
        raw = json.dumps(event).encode()
        if self.rng.random() < 0.2:
            at = self.rng.randrange(len(raw))
            raw = raw[:at] + self.noise() + raw[at + 1 :]
        return self.rng.choice((raw, raw, b"[" * 50_000, raw * 3, b'{"id":' + b"9" * 5_000 + b"}"))

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        known: tuple[tuple[str, str | bytes], ...] = processes.METADATA if self.rng.random() < 0.9 else ()
        more = (
            (
                "x-request-id",
                "".join(chr(self.rng.randint(32, 126)) for _ in range(self.rng.choice((1, 128, 129, 2000)))),
            ),
            (
                "authorization",
                self.rng.choice(("Bearer", "Bearer ", "Basic x", "Bearer dev-token", "Bearer " + "x" * 3000)),
            ),
            ("x-bin", self.noise()[:1000]),
            ("grpc-timeout-x", "1n"),
        )
        return known + tuple(one for one in more if self.rng.random() < 0.15)

    def request(self) -> bytes:
        """Return what a client, or somebody else, may send over a connection to the gateway."""
        body = self.event()
        stamp = int(time.time()) + self.rng.choice((0, 0, 0, -10_000, 10_000))
        mac = hmac.new(SECRET.encode(), b"%d." % stamp + body, hashlib.sha256).hexdigest()
        signed = self.rng.choice(
            (f"t={stamp},v1={mac}", f"t={stamp},v1={mac}", "t=,v1=", f"t={'9' * 400},v1={mac}", "v1=x", "")
        )
        head = [
            f"{self.rng.choice(('POST', 'POST', 'POST', 'GET', 'BREW', 'CONNECT'))} "
            f"{self.rng.choice(('/stripe/webhook', '/stripe/webhook', '/stripe/webhook', '/', '//', '/%00', '/' + 'a' * 9000))}"
            f" HTTP/{self.rng.choice(('1.1', '1.1', '1.0', '2.0', '9.9'))}",
            "Host: localhost",
            f"Stripe-Signature: {signed}",
            self.rng.choice(
                (f"Content-Length: {len(body)}",) * 4
                + (
                    f"Content-Length: {len(body) + 9}",
                    "Content-Length: -1",
                    "Content-Length: 99999999999999",
                    "Transfer-Encoding: chunked",
                )
            ),
            *(f"X-{n}: {'y' * 100}" for n in range(self.rng.choice((0, 0, 0, 200)))),
        ]
        raw = "\r\n".join(head).encode() + b"\r\n\r\n" + body
        if self.rng.random() < 0.2:
            at = self.rng.randrange(len(raw))
            raw = raw[:at] + self.noise() + raw[at + self.rng.randint(0, 20) :]
        return self.noise() if self.rng.random() < 0.1 else raw


async def for_a_while(seconds: float, once: Callable[[random.Random], Any], run: runs.Run, pid: int) -> int:
    """Do something again and again, several at a time; fails if the process has grown. Returns how often it was done."""
    done, began, warm = 0, time.monotonic(), 0
    looked_at = psutil.Process(pid)

    async def go_on(number: int) -> None:
        nonlocal done, warm
        rng = run.rng("hostile", number)
        while (passed := time.monotonic() - began) < seconds:
            await once(rng)
            done += 1
            if not warm and passed > WARM_SHARE * seconds:
                warm = looked_at.memory_info().rss

    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(go_on(number))
    assert looked_at.is_running()
    grown = looked_at.memory_info().rss - warm
    assert grown < GROWTH_BYTES_MAX, f"it grew by {grown:,} bytes"
    return done


@contextlib.asynccontextmanager
async def one_server(url: str, folder: Path) -> AsyncIterator[processes.ServerProcess]:
    await loads.prepare(url)
    async with processes.servers(url, folder, 1) as (started,):
        yield started


async def test_no_message_breaks_an_rpc(database_url: str, run: runs.Run, tmp_path: Path) -> None:
    async with one_server(database_url, tmp_path) as started, started.channel() as channel:
        assert started.process is not None
        codes: Counter[str] = Counter()
        methods = rpcs()
        calls = {name: channel.unary_unary(name) for name in methods}

        async def call(rng: random.Random) -> None:
            fuzzer, name = Fuzzer(rng), rng.choice(list(methods))
            payload = fuzzer.noise() if rng.random() < 0.2 else fuzzer.fill(methods[name]()).SerializeToString()
            try:
                await calls[name](payload, timeout=ANSWER_SECONDS_MAX, metadata=fuzzer.metadata())
            except grpc.aio.AioRpcError as error:
                refusal = refusals.of(error)
                bad = error.code() in {
                    grpc.StatusCode.INTERNAL,
                    grpc.StatusCode.UNKNOWN,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                }
                away = error.code() is grpc.StatusCode.UNAVAILABLE and refusal.reason != "STRIPE_UNAVAILABLE"
                assert not bad, (name, payload, error)
                assert not away, (name, payload, error)
                codes[error.code().name] += 1
            else:
                codes["OK"] += 1
            run.count(answered=sum(codes.values()))

        await for_a_while(run.seconds(5, 0.2), call, run, started.process.pid)
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
                # What follows the preface is read as frames.
                writer.write(rng.choice((b"", preface, preface)) + Fuzzer(rng).noise())
                await writer.drain()
                if rng.random() < 0.5:
                    await asyncio.wait_for(reader.read(100), 1)
            writer.transport.abort()

        thrown = await for_a_while(run.seconds(1, 0.05), suppressing_silence(throw), run, started.process.pid)
        async with started.channel() as channel:
            await asyncio.wait_for(channel.channel_ready(), ANSWER_SECONDS_MAX)
    run.count(connections=thrown)


def suppressing_silence(once: Callable[[random.Random], Any]) -> Callable[[random.Random], Any]:
    """A server may wait for more of a frame than came."""

    async def run_once(rng: random.Random) -> None:
        with contextlib.suppress(TimeoutError):
            await once(rng)

    return run_once


async def test_no_request_breaks_the_gateway(run: runs.Run) -> None:
    port, statuses = embedded.free_port(), Counter[int]()
    async with serve_grpc(ScriptedService()) as grpc_port, run_gateway(grpc_port, port) as gateway:

        async def send(rng: random.Random) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                writer.write(Fuzzer(rng).request())
                # Nothing more will come, so that it need not wait for what was promised.
                writer.write_eof()
                head = await asyncio.wait_for(reader.readline(), ANSWER_SECONDS_MAX)
                if head:
                    status = int(head.split()[1])
                    assert status < 500 or status in GATEWAY_MAY_SAY, head
                    statuses[status] += 1
            writer.transport.abort()
            run.count(requests=sum(statuses.values()))

        await for_a_while(run.seconds(3, 0.1), send, run, gateway.pid)
        run.count(**{f"answered_{status}": number for status, number in sorted(statuses.items())})
    assert {200, 400} <= statuses.keys()
