"""What gRPC's own clients would not send: it ends no service, and who has no token takes nothing of it."""

import asyncio
import gc
import re
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from billing_svc.api import interceptors
from billing_svc.api.servicers.health import HealthServicer
from billing_svc.api.transport import aio, calls, serving
from billing_svc.programs import server
from tests.billing_svc import raw_http2
from tests.billing_svc.service import TOKEN, Billing, server_class, tokens

pytestmark = pytest.mark.usefixtures("each_transport")

CHECK = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs")
METHOD = b"/billing.v1.QuotaService/CheckQuota"
AUTHORIZED = (b"authorization", b"Bearer " + TOKEN.encode())
BARE = "/x.Y/Z"
SECONDS_MAX = 10
AGE = (("grpc.max_connection_age_ms", 1_000),)
WAITING = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")


def _port(billing: Billing) -> int:
    return int(billing.address.rpartition(":")[2])


async def test_a_path_that_is_not_utf_8_ends_no_service(billing: Billing) -> None:
    """It ends the loop in which grpc.aio takes calls up; another one takes its place."""
    async with billing.engine.begin() as holder, asyncio.timeout(SECONDS_MAX):
        # A call that is under way meanwhile.
        await holder.execute(sa.text("LOCK TABLE usage_counters IN ACCESS EXCLUSIVE MODE"))
        event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs")
        recording = asyncio.ensure_future(billing.usage.RecordUsage(event))
        while not await holder.scalar(WAITING):
            pass  # each round is a query
        for path in (b"/\xff", b"\xff", b"/" + b"x" * 100):
            while not (came := await _came(billing, path)):
                pass  # each round is a connection
            assert b"grpc-status\x0212" in came or issubclass(server_class(), aio.AioServer)
    assert (await recording).used == 1
    assert (await billing.quota.CheckQuota(CHECK, wait_for_ready=True)).used == 1


async def _came(billing: Billing, path: bytes) -> bytes:
    try:
        return await raw_http2.call(_port(billing), path, ())
    except ConnectionError:
        return b""


@pytest.mark.parametrize("sent", ["é".encode(), b"\xe9", b"a\0b", b"a\tb"])
async def test_a_request_id_that_cannot_be_sent_back_is_replaced(billing: Billing, sent: bytes) -> None:
    came = await raw_http2.call(
        _port(billing), METHOD, [AUTHORIZED, (b"x-request-id", sent)], CHECK.SerializeToString()
    )
    assert b"grpc-status\x010" in came
    # What is told instead, by its length: 32 hexadecimal digits.
    assert re.search(rb"x-request-id\x20[0-9a-f]{32}", came)


async def test_the_first_authorization_decides(billing: Billing) -> None:
    wrong = (b"authorization", b"Bearer wrong")
    came = await raw_http2.call(_port(billing), METHOD, [wrong, AUTHORIZED], CHECK.SerializeToString())
    assert b"grpc-status\x02%d" % grpc.StatusCode.UNAUTHENTICATED.value[0] in came


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"Basic \xff")]])
async def test_a_stranger_is_refused_before_its_request_is_read(
    billing: Billing, headers: list[tuple[bytes, bytes]]
) -> None:
    came = await raw_http2.call(_port(billing), METHOD, headers, raw_http2.UNFINISHED)
    assert b"grpc-status\x02%d" % grpc.StatusCode.UNAUTHENTICATED.value[0] in came


@pytest.mark.parametrize(
    "header",
    [
        (b"x-key", b"\xff\xfe"),
        (b"x-key-bin", b"*no base64*"),
        (b"x-key-bin", b"\xff"),
        (b"grpc-timeout", b"soon"),
        (b"grpc-encoding", b"unheard-of"),
        (b"x-\xff", b"value"),
    ],
)
async def test_no_header_ends_the_service(billing: Billing, header: tuple[bytes, bytes]) -> None:
    await raw_http2.call(_port(billing), METHOD, [AUTHORIZED, header], CHECK.SerializeToString())
    assert (await billing.quota.CheckQuota(CHECK)).decision == decision_pb2.DECISION_ALLOWED


async def test_a_request_without_a_message_is_refused(billing: Billing) -> None:
    came = await raw_http2.call(_port(billing), METHOD, [AUTHORIZED], raw_http2.ABSENT)
    assert b"grpc-status\x01%d" % grpc.StatusCode.INVALID_ARGUMENT.value[0] in came


async def test_of_calls_that_ended_nothing_is_left(billing: Billing, calls_before: int) -> None:
    """However they ended: answered, cancelled at once or under way, past their deadline, too large, cut off."""

    async def end(number: int) -> None:
        event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id=f"run_{number}", meter="runs")
        large = usage_pb2.RecordUsageRequest(account_id="x" * (server.MESSAGE_BYTES_MAX + 1))
        call = billing.usage.RecordUsage(
            large if number % 5 == 4 else event, timeout=0.001 if number % 5 == 1 else None
        )
        if number % 5 == 2:
            call.cancel()
        if number % 5 == 3:
            asyncio.get_running_loop().call_later(0.001 * (number % 7), call.cancel)
        await call

    await asyncio.gather(*(end(number) for number in range(200)), return_exceptions=True)
    unfinished = [
        asyncio.create_task(raw_http2.call(_port(billing), METHOD, [AUTHORIZED], raw_http2.UNFINISHED))
        for _ in range(20)
    ]
    await asyncio.sleep(0.2)
    for one in unfinished:
        one.cancel()
    await asyncio.wait(unfinished)
    await billing.quota.CheckQuota(CHECK)
    async with asyncio.timeout(SECONDS_MAX):
        while _calls_left() > calls_before:  # noqa: ASYNC110 - gRPC lets go of them
            await asyncio.sleep(0.05)


def _calls_left() -> int:
    return sum(isinstance(one, calls.Call) for one in gc.get_objects())


@pytest.fixture
def calls_before() -> int:
    """How many calls this process holds already; a test that has failed keeps its own."""
    gc.collect()
    return _calls_left()


class Bare:
    """Lets everybody in, without a layer."""

    def __init__(self) -> None:
        self.begun = 0

    def route(self, method: str, handler: serving.MethodHandler) -> serving.Route:
        behaviour: Any = handler.unary_unary
        serialize: Any = handler.response_serializer

        async def run(request: Any, call: calls.Call) -> Any:  # noqa: ANN401
            return await behaviour(await request, call)

        return serving.Route(method, run, run, serialize)

    def begin(self, wire: calls.Wire, metadata: calls.Metadata, serialize: calls.Serializer) -> calls.Call:
        self.begun += 1
        return calls.Call(wire, metadata, serialize)

    def ended(self, method: str, call: calls.Call) -> None:
        pass

    def admits(self, _method: str, call: calls.Call) -> bool:
        if ("x-defect", "1") in [(key, value) for key, value in call.metadata]:
            raise ZeroDivisionError
        return True


async def _started(
    answer: Callable[[bytes, calls.Call], Awaitable[bytes | int]],
    routing: Bare | None = None,
    options: tuple[tuple[str, int], ...] = (),
) -> tuple[serving.Server, int]:
    """Return a server of the one method `BARE`, and its port."""
    handler: Any = grpc.unary_unary_rpc_method_handler(answer, response_serializer=lambda found: found + b"!")
    bare = server_class()(routing or Bare(), options)
    bare.add_registered_method_handlers("x.Y", {"Z": handler})
    port = bare.listen("127.0.0.1:0")
    await bare.start()
    return bare, port


async def test_a_defect_outside_the_layers_fails_its_call_alone() -> None:
    async def answer(request: bytes, call: calls.Call) -> bytes | int:
        if request == b"trailers":
            call.set_trailing_metadata((("x-number", 7),))  # type: ignore[arg-type]  # such a defect
        if request == b"details":
            await call.abort(grpc.StatusCode.NOT_FOUND, "\ud800")
        return int(request) if request.isdigit() else request

    bare, port = await _started(answer)
    with capture_logs():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask: Any = channel.unary_unary(BARE)
            assert await ask(b"a") == b"a!"
            for request in (b"7", b"trailers", b"details"):  # cannot be written, or sent
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(request, timeout=SECONDS_MAX)
                assert caught.value.code() is grpc.StatusCode.INTERNAL, request
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(b"a", metadata=(("x-defect", "1"),), timeout=1)
            assert await ask(b"a") == b"a!"
    await bare.stop(grace_seconds=1)


async def test_of_a_call_that_is_cancelled_before_its_task_began_nothing_is_left(calls_before: int) -> None:
    """The call and its end come in one burst."""

    async def answer(request: bytes, _call: calls.Call) -> bytes:
        return request

    routing = Bare()
    bare, port = await _started(answer, routing)
    with socket.create_connection(("127.0.0.1", port)) as client:
        _send_while_the_loop_stands(client, raw_http2.call_bytes(BARE.encode(), (), b"a"))
        _send_while_the_loop_stands(client, raw_http2.frame(raw_http2.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        async with asyncio.timeout(SECONDS_MAX):
            while _calls_left() > calls_before or not routing.begun:  # noqa: ASYNC110 - gRPC lets go of it
                await asyncio.sleep(0.05)
    await bare.stop(grace_seconds=1)


async def test_a_lone_caller_that_goes_is_noticed_as_among_many(calls_before: int) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: bytes, _call: calls.Call) -> bytes:
        if request == b"long":
            begun.set()
            try:
                await asyncio.sleep(SECONDS_MAX)
            finally:
                ended.set()
        return request

    bare, port = await _started(answer)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(SECONDS_MAX):
        ask: Any = channel.unary_unary(BARE)
        for n in range(50):
            assert await ask(b"%d" % n) == b"%d!" % n
        long = ask(b"long")
        await begun.wait()
        long.cancel()
        await ended.wait()
        assert await asyncio.gather(*(ask(b"a") for _ in range(100))) == [b"a!"] * 100
        while _calls_left() > calls_before:  # noqa: ASYNC110 - gRPC lets go of them
            await asyncio.sleep(0.05)
    await bare.stop(grace_seconds=1)


def _send_while_the_loop_stands(client: socket.socket, sent: bytes) -> None:
    client.sendall(sent)
    time.sleep(0.1)  # gRPC's threads take it up; the loop does not


async def test_until_its_connections_have_gone_a_stop_answers_what_they_send() -> None:
    async def answer(request: bytes, _call: calls.Call) -> bytes:
        return request

    bare, port = await _started(answer, options=AGE)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(SECONDS_MAX):
        ask: Any = channel.unary_unary(BARE)
        assert await ask(b"a") == b"a!"
        stopping = asyncio.create_task(bare.stop(SECONDS_MAX))
        answered = 0
        while not stopping.done():
            try:
                assert await ask(b"a") == b"a!"
            except grpc.aio.AioRpcError as error:
                # Nobody else listens there. It was refused before it was sent.
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - the last one, if it comes to that
                assert "refused" in (error.details() or "")  # noqa: PT017
                break
            answered += 1
        assert answered > 10
        await stopping


async def test_a_stop_refuses_new_connections_while_it_answers_on_the_open_ones() -> None:
    begun, ending = asyncio.Event(), asyncio.Event()

    async def answer(request: bytes, _call: calls.Call) -> bytes:
        begun.set()
        await ending.wait()
        return request

    bare, port = await _started(answer, options=AGE)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(SECONDS_MAX):
        ask: Any = channel.unary_unary(BARE)
        asking = ask(b"a")
        await begun.wait()
        stopping = asyncio.create_task(bare.stop(SECONDS_MAX))
        while await _accepts(port):
            pass  # each round is a connection
        assert not asking.done()
        ending.set()
        assert await asking == b"a!"
        await stopping


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_a_stop_has_a_bound_and_says_that_it_was_reached() -> None:
    async def answer(request: bytes, _call: calls.Call) -> bytes:
        return request

    bare, port = await _started(answer)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(SECONDS_MAX):
        ask: Any = channel.unary_unary(BARE)
        assert await ask(b"a") == b"a!"
        with capture_logs() as lines:
            await bare.stop(0.2)
    assert [(line["event"], line["connections"]) for line in lines] == [("stop_cut_short", 1)]


async def test_a_stop_is_one_however_often_it_is_asked_for() -> None:
    async def answer(request: bytes, _call: calls.Call) -> bytes:
        await asyncio.sleep(0.2)
        return request

    bare, port = await _started(answer, options=AGE)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(SECONDS_MAX):
        ask: Any = channel.unary_unary(BARE)
        asking = ask(b"a")
        await asyncio.sleep(0.1)
        given_up = asyncio.create_task(bare.stop(SECONDS_MAX))
        await asyncio.sleep(0.01)
        given_up.cancel()
        assert await asking == b"a!"
        await asyncio.gather(bare.stop(SECONDS_MAX), bare.stop(SECONDS_MAX))
        await bare.stop(SECONDS_MAX)


async def test_a_request_that_does_not_come_has_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no token is asked for, too: a stranger's megabytes stayed for as long as it liked."""
    monkeypatch.setattr(interceptors, "SERVER_DEADLINE_SECONDS", 1.0)
    monkeypatch.setattr(interceptors, "OPEN_CALLS_AT_ONCE", 2)
    open_to_all = server_class()(server.routing(tokens()))
    open_to_all.add(health_pb2_grpc.add_HealthServicer_to_server, HealthServicer(()))
    port = open_to_all.listen("127.0.0.1:0")
    await open_to_all.start()
    with capture_logs() as lines:
        check = (port, b"/grpc.health.v1.Health/Check", (), raw_http2.UNFINISHED)
        came = await asyncio.gather(*(raw_http2.call(*check) for _ in range(3)))
        assert sorted(grpc_status(one) for one in came) == [4, 4, 8]
        assert grpc_status(await raw_http2.call(*check[:3], b"")) == 0
    assert sorted(line["code"] for line in lines if line["event"] == "call") == [
        "DEADLINE_EXCEEDED",
        "DEADLINE_EXCEEDED",
        "OK",
        "RESOURCE_EXHAUSTED",
    ]
    await open_to_all.stop(grace_seconds=0)


def grpc_status(came: bytes) -> int:
    found = re.search(rb"grpc-status[\x01\x02](\d+)", came)
    assert found is not None
    return int(found[1])


async def test_a_call_whose_caller_goes_before_its_request_came_is_logged_as_cancelled(billing: Billing) -> None:
    with capture_logs() as lines, socket.create_connection(("127.0.0.1", _port(billing))) as client:
        client.sendall(raw_http2.call_bytes(METHOD, [AUTHORIZED], raw_http2.UNFINISHED))
        await asyncio.sleep(0.1)
        client.sendall(raw_http2.frame(raw_http2.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        async with asyncio.timeout(SECONDS_MAX):
            while not lines:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
    assert [(line["event"], line["code"]) for line in lines] == [("call", "CANCELLED")]


async def test_nobody_who_watches_holds_up_what_is_watched() -> None:
    """Who takes no answer: grpcio-health-checking's own servicer waits for it, under a lock that all others need."""
    health = HealthServicer(("x.Y",))
    watched = server_class()(server.routing(tokens()))
    watched.add(health_pb2_grpc.add_HealthServicer_to_server, health)
    port = watched.listen("127.0.0.1:0")
    await watched.start()
    health.set_serving(True)
    no_window = b"\0\4" + bytes(4)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(raw_http2.call_bytes(b"/grpc.health.v1.Health/Watch", (), settings=no_window))
        await asyncio.sleep(0.1)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(SECONDS_MAX):
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "x.Y"):
                watching = stub.Watch(health_pb2.HealthCheckRequest(service=service))
                assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
                health.set_serving(False)
                assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                health.set_serving(True)
            health.drain()
            health.set_serving(True)
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == (
                health_pb2.HealthCheckResponse.NOT_SERVING
            )
            unknown = health_pb2.HealthCheckRequest(service="x.Z")
            assert (await stub.Watch(unknown).read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(unknown)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await watched.stop(grace_seconds=0)


async def test_a_port_that_is_taken_is_said_so(billing: Billing) -> None:
    bare = server_class()(server.routing(tokens()), (("grpc.so_reuseport", 0),))
    with pytest.raises(serving.CannotListen):
        bare.listen(billing.address)
    await bare.stop(grace_seconds=0)


async def test_streams_without_a_token_are_bounded(billing: Billing) -> None:
    asked = health_pb2.HealthCheckRequest()
    async with grpc.aio.insecure_channel(billing.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watching = [watch(asked) for _ in range(interceptors.STREAMS_AT_ONCE)]
        for one in watching:
            assert (await one.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch(asked).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for one in watching:
            one.cancel()
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                try:
                    await watch(asked).read()
                except grpc.aio.AioRpcError:
                    continue
                break
