"""The gateway's answers to Stripe and to everyone else, over HTTP."""

import asyncio
import json
import time
from collections.abc import Callable

import grpc
import httpx
import pytest
import stripe
import structlog

from tests.webhook_gateway.conftest import (
    OTHER_SECRET,
    SECRET,
    TOKEN,
    Door,
    ScriptedService,
    event_body,
    open_door,
    serve_gateway,
    serve_grpc,
    sign,
)
from webhook_gateway import body, signature

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = event_body()


def assert_refused(door: Door, answer: httpx.Response, status: int, reason: str) -> None:
    assert (answer.status_code, answer.json()) == (status, {"error": reason})
    assert door.service.calls == 0


# --- what is from Stripe


async def test_a_signed_event_is_stored_as_it_was_sent_and_then_answered_200(door: Door) -> None:
    raw = b' {"id":"evt_1",\n "name": "\xc3\xa9\\u00e9"} '

    answer = await door.post(raw, sign(raw))

    assert (answer.status_code, answer.json()) == (200, {"status": "stored"})
    assert door.service.stored == {"evt_1": raw}
    assert door.service.tokens == {f"Bearer {TOKEN}"}


async def test_a_request_signed_by_stripes_own_sdk_is_taken(door: Door) -> None:
    made = stripe.WebhookSignature.generate_signature_header(BODY.decode(), SECRET)

    assert (await door.post(BODY, made)).status_code == 200


async def test_each_of_several_secrets_is_taken(door: Door) -> None:
    for secret in (SECRET, OTHER_SECRET):
        assert (await door.post(BODY, sign(BODY, secret))).status_code == 200


async def test_the_same_event_ten_times_at_once_is_stored_once_and_answered_200_each_time(door: Door) -> None:
    answers = await asyncio.gather(*(door.post(BODY, sign(BODY)) for _ in range(10)))

    assert [answer.status_code for answer in answers] == [200] * 10
    assert sorted(answer.json()["status"] for answer in answers) == ["duplicate"] * 9 + ["stored"]
    assert door.service.stored == {"evt_1": BODY}


async def test_a_body_of_exactly_256_kib_is_taken(door: Door) -> None:
    raw = event_body(padding="")
    raw = event_body(padding="x" * (body.BYTES_MAX - len(raw)))

    assert len(raw) == body.BYTES_MAX
    assert (await door.post(raw, sign(raw))).status_code == 200


# --- what is not from Stripe


@pytest.mark.parametrize(
    ("header_of", "reason"),
    [
        (lambda: None, "signature_missing"),
        (lambda: "", "signature_missing"),
        (lambda: "nonsense", "signature_malformed"),
        (lambda: "t=1,v1=", "signature_old"),
        (lambda: sign(BODY, "whsec_of_somebody_else"), "signature_wrong"),
        (lambda: sign(BODY, ""), "signature_wrong"),
        (lambda: sign(BODY, shift_seconds=-400), "signature_old"),
        (lambda: sign(BODY, shift_seconds=3600), "signature_future"),
        (lambda: sign(BODY) + ",v0=" + "0" * signature.HEADER_BYTES_MAX, "signature_header_too_long"),
        (lambda: sign(BODY) + ",v1=0" * signature.SIGNATURES_MAX, "signatures_too_many"),
    ],
)
async def test_what_stripe_did_not_sign_is_400_and_goes_no_further(
    door: Door, header_of: Callable[[], str | None], reason: str
) -> None:
    # Signed now: in a long run, a signature from its beginning would be too old.
    assert_refused(door, await door.post(BODY, header_of()), 400, reason)


async def test_a_signature_header_of_raw_bytes_is_400(door: Door) -> None:
    headers = [(b"Stripe-Signature", f"t={int(time.time())},v1=".encode() + b"\xff\xfe\x80")]

    answer = await door.client.post("/stripe/webhook", content=BODY, headers=headers)

    assert_refused(door, answer, 400, "signature_wrong")


async def test_two_signature_headers_are_400_even_if_both_are_right(door: Door) -> None:
    headers = [("stripe-signature", sign(BODY)), ("stripe-signature", sign(BODY))]

    answer = await door.client.post("/stripe/webhook", content=BODY, headers=headers)

    assert_refused(door, answer, 400, "signature_malformed")


async def test_one_altered_byte_is_400(door: Door) -> None:
    altered = BODY.replace(b"evt_1", b"evt_2")

    assert_refused(door, await door.post(altered, sign(BODY)), 400, "signature_wrong")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "body_not_json"),
        (b"not json", "body_not_json"),
        (b'{"id": "\xff"}', "body_not_utf8"),
        (b'["evt_1"]', "body_not_object"),
        (b'{"object": "event"}', "event_id_missing"),
        (b'{"id": "evt_1", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body_nests_too_deep"),
    ],
)
async def test_a_signed_body_that_is_no_event_is_400(door: Door, raw: bytes, reason: str) -> None:
    assert_refused(door, await door.post(raw, sign(raw)), 400, reason)


async def test_an_unsigned_body_is_not_parsed_before_the_signature_is_checked(door: Door) -> None:
    assert_refused(door, await door.post(b"not json", sign(BODY)), 400, "signature_wrong")


# --- what is too large


@pytest.mark.parametrize("declares_its_length", [True, False])
async def test_a_client_that_sends_2_mb_before_it_reads_gets_its_413(
    door: Door,
    declares_its_length: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    size = 2_000_000
    async with door.connect() as (reader, writer):
        writer.write(b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\n")
        if declares_its_length:
            writer.write(b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        else:
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n%s\r\n" % (b"x" * 1000) * (size // 1000))
            writer.write(b"0\r\n\r\n")
        await writer.drain()

        answer = await reader.read()

        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
        assert answer.endswith(b'{"error":"body_too_large"}')
        assert door.service.calls == 0


async def test_too_large_a_length_is_413_before_the_body_came(door: Door) -> None:
    async with door.connect() as (reader, writer):
        writer.write(b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (body.BYTES_MAX + 1))

        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")


async def test_a_chunked_body_is_413_as_soon_as_it_is_too_large_and_not_kept(door: Door) -> None:
    async with door.connect() as (reader, writer):
        writer.write(b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(257):
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        await writer.drain()

        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")  # the last chunk was never sent


async def test_who_sends_for_ever_after_a_413_is_cut_off(door: Door) -> None:
    async with door.connect() as (_, writer):
        writer.write(b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")

        async def send_for_ever() -> None:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_for_ever(), 5)


# --- what is too slow


async def trickle(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes, pause_seconds: float = 0.05
) -> bytes:
    """Send `piece` repeatedly until the gateway closes; returns its answer."""
    answering = asyncio.create_task(reader.read())
    async with asyncio.timeout(20):  # far beyond the gateway's time-outs, on any machine
        while not answering.done():
            writer.write(piece)
            await asyncio.wait([answering], timeout=pause_seconds)
    return answering.result()


async def test_a_body_that_dawdles_is_408_however_it_trickles(service: ScriptedService) -> None:
    async with (
        serve_grpc(service) as grpc_port,
        serve_gateway(grpc_port, body_seconds_max=0.3) as port,
        open_door(service, port) as door,
        door.connect() as (reader, writer),
    ):
        writer.write(b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")

        # Slowly, so that no write is under way when the answer arrives: that would reset the connection.
        answer = await trickle(reader, writer, b"x", pause_seconds=0.25)

        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        assert service.calls == 0


async def test_a_head_that_dawdles_is_cut_off_on_a_fresh_and_on_a_used_connection(service: ScriptedService) -> None:
    async with (
        serve_grpc(service) as grpc_port,
        serve_gateway(grpc_port, head_seconds_max=0.3) as port,
        open_door(service, port) as door,
    ):
        for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            async with door.connect() as (reader, writer):
                writer.write(first + b"POST /stripe/webhook HTTP/1.1\r\n")
                answer = await trickle(reader, writer, b"X: y\r\n")
            assert answer.count(b"HTTP/1.1 ") == (1 if first else 0)  # the unfinished request got no answer


async def test_the_rest_of_a_body_that_was_answered_early_may_not_dawdle_either(service: ScriptedService) -> None:
    async with (
        serve_grpc(service) as grpc_port,
        serve_gateway(grpc_port, head_seconds_max=0.3) as port,
        open_door(service, port) as door,
        door.connect() as (reader, writer),
    ):
        writer.write(b"POST /elsewhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")

        assert (await trickle(reader, writer, b"x")).startswith(b"HTTP/1.1 404 ")


# --- what the service answers


@pytest.mark.parametrize(
    ("code", "status", "reason", "level"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400, "refused_by_service", "warning"),
        (grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable", "warning"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503, "service_unavailable", "warning"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 503, "service_unavailable", "warning"),
        (grpc.StatusCode.INTERNAL, 503, "service_unavailable", "warning"),
        (grpc.StatusCode.UNKNOWN, 503, "service_unavailable", "warning"),
        (grpc.StatusCode.ABORTED, 503, "service_unavailable", "warning"),
        (grpc.StatusCode.CANCELLED, 503, "service_unavailable", "warning"),
        (grpc.StatusCode.UNAUTHENTICATED, 503, "gateway_misconfigured", "error"),
        (grpc.StatusCode.PERMISSION_DENIED, 503, "gateway_misconfigured", "error"),
        (grpc.StatusCode.UNIMPLEMENTED, 503, "gateway_misconfigured", "error"),
    ],
)
async def test_each_status_of_the_service_has_its_answer(
    door: Door, code: grpc.StatusCode, status: int, reason: str, level: str
) -> None:
    door.service.status = code

    with structlog.testing.capture_logs() as logs:
        answer = await door.post(BODY, sign(BODY))

    assert (answer.status_code, answer.json()) == (status, {"error": reason})
    assert ("retry-after" in answer.headers) == (status == 503)
    [line] = logs
    assert (line["log_level"], line["grpc_code"], line["event_id"]) == (level, code.name, "evt_1")
    assert "text of the service" not in str(logs)


async def test_a_service_that_hangs_is_503(service: ScriptedService) -> None:
    service.hangs = True
    async with (
        serve_grpc(service) as grpc_port,
        serve_gateway(grpc_port, forward_seconds_max=0.3) as port,
        open_door(service, port) as door,
    ):
        answer = await door.post(BODY, sign(BODY))

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"


async def test_a_service_that_is_away_is_503_at_once_and_found_within_a_second_of_its_return(
    service: ScriptedService,
) -> None:
    async with serve_grpc(service) as grpc_port:
        pass  # only to get a port on which nothing listens
    async with serve_gateway(grpc_port) as port, open_door(service, port) as door:
        for _ in range(10):  # long enough for gRPC's back-off to reach several seconds without our bound
            started = time.monotonic()
            assert (await door.post(BODY, sign(BODY))).status_code == 503
            assert time.monotonic() - started < 1
            await asyncio.sleep(0.5)
        async with serve_grpc(service, grpc_port):
            await asyncio.sleep(0.9)
            assert (await door.post(BODY, sign(BODY))).status_code == 200


async def test_a_service_that_restarts_is_found_again(service: ScriptedService) -> None:
    async with serve_grpc(service) as grpc_port:
        pass
    async with serve_gateway(grpc_port) as port, open_door(service, port) as door:
        async with serve_grpc(service, grpc_port):
            assert (await door.post(BODY, sign(BODY))).status_code == 200
        assert (await door.post(BODY, sign(BODY))).status_code == 503
        async with serve_grpc(service, grpc_port):
            await asyncio.sleep(0.9)
            assert (await door.post(BODY, sign(BODY))).status_code == 200


# --- health, other paths, the log


async def test_health_says_whether_the_process_answers_and_readiness_whether_the_service_does(door: Door) -> None:
    assert (await door.client.get("/healthz")).status_code == 200
    assert (await door.client.get("/readyz")).json() == {"status": "ready"}

    door.service.healthy = False

    assert (await door.client.get("/readyz")).status_code == 503
    assert (await door.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/stripe/webhook", 405),
        ("PUT", "/stripe/webhook", 405),
        ("DELETE", "/stripe/webhook", 405),
        ("HEAD", "/stripe/webhook", 405),
        ("POST", "/healthz", 405),
        ("POST", "/", 404),
        ("POST", "/stripe/webhook/", 404),
        ("POST", "/stripe", 404),
        ("GET", "/docs", 404),
    ],
)
async def test_other_methods_are_405_and_other_paths_404(door: Door, method: str, path: str, status: int) -> None:
    answer = await door.client.request(method, path, content=BODY, headers={"stripe-signature": sign(BODY)})

    assert answer.status_code == status
    assert status != 405 or answer.headers["allow"]
    assert door.service.calls == 0


async def test_each_request_is_one_line_without_body_secret_signature_or_token(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    raw = event_body(name="Erika Mustermann")
    good, bad = sign(raw), sign(raw, "whsec_of_somebody_else")

    with structlog.testing.capture_logs() as logs:
        for signed in (good, bad, None):
            await door.post(raw, signed)
        await door.post(raw[:-1], sign(raw[:-1]))
        await door.client.get("/nowhere")

    assert [(line["status"], line["reason"], line["event_id"]) for line in logs] == [
        (200, "stored", "evt_1"),
        (400, "signature_wrong", None),  # an id without a valid signature is not logged
        (400, "signature_missing", None),
        (400, "body_not_json", None),
        (404, "not_found", None),
    ]
    assert all(line["duration_ms"] >= 0 for line in logs)
    gateway_lines = [
        record.getMessage() for record in caplog.records if record.name in {"uvicorn.error", "grpc", "asyncio"}
    ]
    written = json.dumps(logs, default=str) + "\n".join(gateway_lines)
    for hidden in ("Erika", SECRET, OTHER_SECRET, TOKEN, good[-20:], bad[-20:], "/nowhere"):
        assert hidden not in written
