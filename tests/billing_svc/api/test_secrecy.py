"""What no process writes, at any level, whatever it is sent: secrets, tokens, e-mail addresses, bodies."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import sqlalchemy as sa
from google.protobuf import descriptor_pool, message, message_factory

from tests import ports
from tests.billing_svc import processes
from tests.billing_svc.api.methods import METHODS
from tests.billing_svc.sandboxed import Sandbox

SECONDS_MAX = 60
# Every secret, address and content below has this in it, so that one look finds them all.
MARK = "marked4711"
TOKEN, WEBHOOK_SECRET, STRIPE_KEY = f"token-{MARK}", f"whsec_{MARK}", f"sk_test_{MARK}"
EMAIL = f"erika-{MARK}@example.com"
# Ids are logged, so that what happened can be followed; whoever calls must put nothing else into them.
IDS = {
    "account_id": "org_1",
    "event_id": "run_1",
    "event_ids": "evt_1",
    "request_id": "req_1",
    "reservation_id": "res_1",
    "correction_id": "cor_1",
    "alert_id": "alert_1",
    "object_id": "sub_1",
}
FIT = {"meter": "runs", "meters": "runs", "plan": "pro", "operation": "", "price": "", "page_token": ""}


@dataclass(slots=True)
class Program:
    """A running program, and the file with all that it writes."""

    process: asyncio.subprocess.Process
    log: Path


@contextlib.asynccontextmanager
async def running(log: Path, environment: Mapping[str, str], *command: str) -> AsyncIterator[Program]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command), env=environment, stdout=output, stderr=output
        )
    try:
        yield Program(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(SECONDS_MAX):
            await process.wait()


async def until_written(program: Program, text: str) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while text not in program.log.read_text():
            assert program.process.returncode is None, program.log.read_text()
            await asyncio.sleep(0.05)


def request_of(method: str, number: int, *, is_fit: bool) -> message.Message:
    """Return a request with the mark in every field that has room for it."""
    service, _, name = method[1:].partition("/")
    kind = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].input_type
    request: Any = message_factory.GetMessageClass(kind)()
    _fill(request, number, is_fit=is_fit)
    return request  # type: ignore[no-any-return]


def _fill(request: Any, number: int, *, is_fit: bool) -> None:  # noqa: ANN401 - any message
    for field in request.DESCRIPTOR.fields:
        if field.type == field.TYPE_BYTES:
            setattr(request, field.name, webhook_body(f"evt_rpc_{number}") if is_fit else MARK.encode())
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(request, field.name)["note"] = f"{EMAIL} {MARK}"
        elif field.message_type is not None and field.is_repeated:
            _fill(getattr(request, field.name).add(), number, is_fit=is_fit)
        elif field.type == field.TYPE_STRING:
            value = EMAIL if "email" in field.name else f"about {EMAIL} {MARK}"
            if field.name in IDS:
                value = f"{IDS[field.name]}_{number}"
            value = FIT.get(field.name, value) if is_fit else value
            if is_fit and field.name.endswith("_url"):
                value = f"https://app.example.com/{MARK}?email={EMAIL}"
            if field.is_repeated:
                getattr(request, field.name).append(value)
            else:
                setattr(request, field.name, value)


def webhook_body(event_id: str) -> bytes:
    """Return an event about a customer, as Stripe sends them: full of what is nobody's business."""
    customer = {"id": "cus_1", "object": "customer", "email": EMAIL, "name": f"Erika {MARK}"}
    event = {
        "id": event_id,
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": 1_790_000_000,
        "livemode": False,
        "type": "customer.updated",
        "data": {"object": customer},
    }
    return json.dumps(event).encode()


def signature(body: bytes) -> str:
    at = int(time.time())
    mac = hmac.new(WEBHOOK_SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


async def drive(channel: grpc.aio.Channel, number: int) -> set[str]:
    """Send every RPC fit, unfit, malformed, and with a token that nobody has; return the codes that came back."""
    codes = set()
    for method in METHODS:
        raw: Any = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
        for body in (
            request_of(method, number, is_fit=True).SerializeToString(),
            request_of(method, number, is_fit=False).SerializeToString(),
            b"\x7f" + MARK.encode(),
        ):
            for token in (TOKEN, f"unknown-{MARK}"):
                try:
                    await raw(body, metadata=(("authorization", f"Bearer {token}"), ("x-note", EMAIL)), timeout=30)
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code().name)
                    codes |= (
                        {"QUOTES THE TOKEN"} if token in f"{error.details()} {error.trailing_metadata()}" else set()
                    )
                else:
                    codes.add("OK")
    return codes


async def drive_gateway(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        raw = webhook_body("evt_gateway")
        assert (
            await client.post("/stripe/webhook", content=raw, headers={"stripe-signature": signature(raw)})
        ).is_success
        for body, header in ((raw, f"t=1,v1={MARK}"), (MARK.encode(), signature(MARK.encode()))):
            headers = {"stripe-signature": header, "x-note": EMAIL}
            assert (await client.post("/stripe/webhook", content=body, headers=headers)).status_code == 400
        assert (await client.get(f"/{MARK}?email={EMAIL}")).status_code == 404


async def test_no_process_writes_a_secret_an_address_or_a_body(
    sandbox: Sandbox, published_catalog: int, database_url: str, tmp_path: Path
) -> None:
    assert published_catalog
    callers = tmp_path / "callers.yaml"
    groups = "[check, record, subscription, admin, webhook]"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    callers.write_text(f'callers: [{{name: tests, groups: {groups}, token_sha256: ["{digest}"]}}]')
    grpc_port, http_port = ports.free_port(), ports.free_port()
    environment = os.environ | {
        "PYTHONPATH": str(processes.SRC),
        "PYTHONUNBUFFERED": "1",
        "DATABASE_URL": database_url,
        "BILLING_LISTEN": f"127.0.0.1:{grpc_port}",
        "BILLING_LOG_LEVEL": "debug",
        "BILLING_CALLERS_FILE": str(callers),
        "BILLING_REDIRECT_ORIGINS": "https://app.example.com",
        "STRIPE_API_KEY": STRIPE_KEY,
        "STRIPE_API_BASE": sandbox.url,
        "STRIPE_LOG": "debug",
        "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
        "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
        "STRIPE_WEBHOOK_SECRETS": WEBHOOK_SECRET,
        "BILLING_GRPC_TARGET": f"127.0.0.1:{grpc_port}",
        "BILLING_GRPC_TOKEN": TOKEN,
        "GATEWAY_LISTEN": f"127.0.0.1:{http_port}",
    }
    password = sa.make_url(database_url).password
    assert password
    async with (
        running(tmp_path / "server.log", environment, "billing_svc", "serve") as server,
        running(tmp_path / "worker.log", environment, "billing_svc", "worker") as worker,
        running(tmp_path / "gateway.log", environment, "webhook_gateway") as gateway,
        grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):
        programs = (server, worker, gateway)
        await until_written(server, '"serving"')
        await until_written(worker, '"working"')
        await until_written(gateway, "Uvicorn running")
        codes = await drive(channel, 1)
        assert codes >= {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED"}
        await drive_gateway(http_port)
        # Now Postgres refuses rows, and quotes them in what it says.
        await break_tables(database_url)
        codes |= await drive(channel, 2)
        assert "INTERNAL" in codes
        assert "QUOTES THE TOKEN" not in codes
        if sys.platform == "linux":
            for one in programs:
                arguments = command_line(one.process.pid)
                assert "-m" in arguments
                assert MARK not in arguments
                assert password not in arguments
    for one in programs:
        text = one.log.read_text()
        assert text
        assert MARK not in text, [line for line in text.splitlines() if MARK in line][:3]
        assert password not in text
        assert "example.com" not in text


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def break_tables(database_url: str) -> None:
    engine = sa.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for table in ("usage_events", "stripe_events", "stripe_requests", "checkouts", "audit_log"):
            connection.execute(sa.text(f"ALTER TABLE {table} ADD CONSTRAINT broken CHECK (false) NOT VALID"))
    await asyncio.to_thread(engine.dispose)


@pytest.mark.parametrize(
    "variable", ["DATABASE_URL", "STRIPE_API_KEY", "BILLING_CALLERS_FILE", "BILLING_TLS_CERT_FILE"]
)
def test_a_start_that_fails_names_the_variable_and_not_its_value(variable: str) -> None:
    values = {
        "DATABASE_URL": f"postgresql://{MARK}:{MARK}@127.0.0.1:1/billing",
        "STRIPE_API_KEY": STRIPE_KEY,
        "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
        "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
    }
    broken = {
        "DATABASE_URL": MARK,
        "STRIPE_API_KEY": "",
        "BILLING_CALLERS_FILE": "/nothing",
        "BILLING_TLS_CERT_FILE": "x",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "billing_svc", "serve"],
        env=os.environ | {"PYTHONPATH": str(processes.SRC)} | values | {variable: broken[variable]},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert ended.returncode != 0
    assert MARK not in ended.stdout + ended.stderr
