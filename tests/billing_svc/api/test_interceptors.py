"""What every call passes through, seen from outside: request ids, errors, deadlines, the log line."""

import asyncio
import json
import random
import re
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from billing.v1 import admin_pb2_grpc, quota_pb2, subscription_pb2, usage_pb2, usage_pb2_grpc
from billing_svc.api import interceptors
from billing_svc.programs import server
from tests.billing_svc import books, processes, refusals
from tests.billing_svc.api.methods import MALFORMED, METHODS
from tests.billing_svc.service import TOKEN, Billing, server_class, tokens

GENERATED = re.compile("[0-9a-f]{32}")
EVENT = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs")
CHECK = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs")


@pytest.fixture(name="raw")
async def raw_channel(billing: Billing) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(billing.address) as channel:
        yield channel


def _bearer(*more: tuple[str, str]) -> Sequence[tuple[str, str]]:
    return (("authorization", f"Bearer {TOKEN}"), *more)


async def _send(channel: grpc.aio.Channel, method: str, body: bytes) -> refusals.Refusal:
    call: Any = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    return await refusals.refused(call(body, metadata=_bearer()))


@pytest.mark.usefixtures("each_transport")
async def test_malformed_bytes_are_refused_in_our_words_by_every_rpc(billing: Billing, raw: grpc.aio.Channel) -> None:
    before = await books.contents(billing.engine)
    # Cut off, an overlong length, a group without an end, and a string that is not UTF-8.
    for body in (MALFORMED, b"\x0a\xff", b"\x0a\xff\xff\xff\xff\x7f", b"\x0b", b"\x0a\x02\xc3\x28"):
        for method in METHODS if body == MALFORMED else ["/billing.v1.UsageService/RecordUsage"]:
            refusal = await _send(raw, method, body)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE"), method
            assert refusal.message == "the bytes are not a message of this RPC's request type"
            assert len(refusal.request_ids) == 1
    assert await books.contents(billing.engine) == before


@pytest.mark.usefixtures("each_transport")
async def test_rpcs_of_later_releases_say_so() -> None:
    """A generated servicer of which nothing is written yet, inside the production layers."""
    known = tokens()
    bare = server_class()(server.routing(known))
    bare.add(admin_pb2_grpc.add_AdminServiceServicer_to_server, admin_pb2_grpc.AdminServiceServicer())
    port = bare.listen("127.0.0.1:0")
    await bare.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in [one for one in METHODS if "AdminService" in one]:
            refusal = await _send(channel, method, b"")
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED"), method
            assert refusal.metadata == {"rpc": method}
    await bare.stop(grace_seconds=1)


@pytest.mark.usefixtures("each_transport")
async def test_what_a_handler_raises_stays_inside(billing: Billing, capfd: pytest.CaptureFixture[str]) -> None:
    async with billing.engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE usage_events RENAME COLUMN units TO hush_hush"))
    with capture_logs() as lines:
        refusal = await refusals.refused(billing.usage.RecordUsage(EVENT, metadata=(("x-request-id", "req-7"),)))
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert refusal.message == "internal error; request req-7"
    assert refusal.request_ids == ("req-7",)
    for part in ("hush", "units", "column", "psycopg", "sqlalchemy", "Traceback"):
        assert part not in refusal.trailers + refusal.message
    assert [line["code"] for line in lines if line["event"] == "call"] == ["INTERNAL"]
    # The log has the cause under the same id, for those who operate the service.
    assert [line["request_id"] for line in lines if line["event"] == "handler failed"] == ["req-7"]
    assert "run_1" not in capfd.readouterr().out
    assert (await books.row_counts(billing.engine))["usage_counters"] == 0


@pytest.mark.parametrize("sent", ["a", "req-1", "x" * 128, "a b", "~!@#$%^&*()"])
async def test_a_fit_request_id_is_taken_over(billing: Billing, sent: str) -> None:
    metadata = (("x-request-id", sent),)
    call = billing.usage.RecordUsage(EVENT, metadata=metadata)
    await call
    assert [value for key, value in await call.trailing_metadata() if key == "x-request-id"] == [sent]
    wrong = quota_pb2.CheckQuotaRequest(account_id="org_1")
    assert (await refusals.refused(billing.quota.CheckQuota(wrong, metadata=metadata))).request_ids == (sent,)
    async with billing.engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT request_id FROM usage_events")) == sent


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("metadata", [(), (("x-request-id", ""),), (("x-request-id", "x" * 129),)])
async def test_an_unfit_request_id_is_replaced(billing: Billing, metadata: Sequence[tuple[str, str]]) -> None:
    call = billing.quota.CheckQuota(CHECK, metadata=metadata)
    await call
    ids = [value for key, value in await call.trailing_metadata() if key == "x-request-id"]
    refusal = await refusals.refused(billing.quota.CheckQuota(quota_pb2.CheckQuotaRequest(), metadata=metadata))
    ids += refusal.request_ids
    assert len(ids) == 2
    assert ids[0] != ids[1]
    assert all(GENERATED.fullmatch(str(one)) for one in ids)


@pytest.mark.usefixtures("each_transport")
async def test_an_unauthenticated_call_has_its_request_id_too(billing: Billing) -> None:
    async with grpc.aio.insecure_channel(billing.address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        refusal = await refusals.refused(stub.RecordUsage(EVENT, metadata=(("x-request-id", "req-1"),)))
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.request_ids == ("req-1",)


@pytest.mark.usefixtures("each_transport")
async def test_the_longest_error_arrives_whole_enough(billing: Billing) -> None:
    """Past about 8 KiB of trailers a status is destroyed in transit; reason and first fields must survive."""
    wide = "\N{GRINNING FACE}" * 16
    properties = {f"{wide[:15]}{n}"[:16]: "x" * 513 for n in range(50)}
    refusal = await refusals.refused(
        billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs", properties=properties)
        )
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refusal.fields
    assert all(field.startswith("properties[") for field in refusal.fields)
    refusal = await refusals.refused(
        billing.usage.GetUsage(usage_pb2.GetUsageRequest(account_id="org_1", meters=["NO!" * 20] * 50))
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert refusal.fields[0] == "meters[0]"


@pytest.mark.usefixtures("each_transport")
async def test_a_client_s_deadline_does_not_tear_the_transaction(billing: Billing) -> None:
    await billing.usage.RecordUsage(EVENT)
    second = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_2", meter="runs")
    async with billing.engine.begin() as holder:
        await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
        refusal = await refusals.refused(billing.usage.RecordUsage(second, timeout=0.1))
        assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await billing.transactions.drain()
    await books.assert_balanced(billing.engine)
    assert await books.used(billing.engine, "org_1") == 2
    repeated = await billing.usage.RecordUsage(second)
    assert (repeated.duplicate, repeated.used) == (True, 2)


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server that starts from now on gives each call."""
    monkeypatch.setattr(interceptors, "SERVER_DEADLINE_SECONDS", 1.0)


@pytest.mark.usefixtures("each_transport", "one_second")
class TestTheServersDeadline:
    async def test_a_deadline_answers_unknown_and_a_repeat_finds_out(self, billing: Billing) -> None:
        await billing.usage.RecordUsage(EVENT)
        second = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_2", meter="runs")
        async with billing.engine.begin() as holder:
            await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
            refusal = await refusals.refused(billing.usage.RecordUsage(second))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
            assert "repeat with the same id" in refusal.message
        await billing.transactions.drain()
        repeated = await billing.usage.RecordUsage(second)
        assert (repeated.duplicate, repeated.used) == (True, 2)
        await books.assert_balanced(billing.engine)

    async def test_each_call_has_its_own_deadline(self, billing: Billing) -> None:
        await billing.usage.RecordUsage(EVENT)
        loop = asyncio.get_running_loop()

        async def seconds_until_refused(number: int) -> float:
            began = loop.time()
            event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id=f"late_{number}", meter="runs")
            assert (await refusals.refused(billing.usage.RecordUsage(event))).reason == "DEADLINE_EXCEEDED"
            return loop.time() - began

        async with billing.engine.begin() as holder:
            await holder.execute(sa.text("SELECT 1 FROM usage_counters FOR UPDATE"))
            async with asyncio.TaskGroup() as calling:
                waits = []
                for number in range(4):
                    waits.append(calling.create_task(seconds_until_refused(number)))
                    await asyncio.sleep(0.3)
        assert all(0.95 < wait.result() < 2 for wait in waits)


async def test_a_storm_of_deadlines_leaves_nothing_half_done(billing: Billing) -> None:
    rng = random.Random(7)  # noqa: S311 - repeatable, not secret
    events = [
        usage_pb2.RecordUsageRequest(account_id=f"org_{n % 3}", event_id=f"run_{n}", meter="runs") for n in range(150)
    ]

    async def once(event: usage_pb2.RecordUsageRequest, seconds: float) -> str:
        try:
            await billing.usage.RecordUsage(event, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    # From hopeless to comfortable, so that deadlines pass before, during and after the transaction.
    codes = await asyncio.gather(*(once(event, rng.uniform(0.001, 0.8)) for event in events))
    assert set(codes) <= {"OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert "DEADLINE_EXCEEDED" in codes
    await billing.transactions.drain()
    await books.assert_balanced(billing.engine)
    for event, code in zip(events, codes, strict=True):
        repeated = await billing.usage.RecordUsage(event)
        assert repeated.duplicate or code != "OK"
    await books.assert_balanced(billing.engine)
    assert [await books.used(billing.engine, f"org_{n}") for n in range(3)] == [50, 50, 50]


@pytest.mark.usefixtures("each_transport")
async def test_each_call_has_one_log_line(billing: Billing) -> None:
    metadata = (("x-request-id", "req-1"),)
    with capture_logs() as lines:
        await billing.quota.CheckQuota(CHECK, metadata=metadata)
        wrong = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="nothing")
        await refusals.refused(billing.quota.CheckQuota(wrong, metadata=metadata))
        await billing.subscriptions.GetSubscription(subscription_pb2.GetSubscriptionRequest(account_id="org_2"))
    calls = [line for line in lines if line["event"] == "call"]
    assert [(line["method"].rpartition("/")[2], line["code"], line["reason"], line["account"]) for line in calls] == [
        ("CheckQuota", "OK", "", "org_1"),
        ("CheckQuota", "NOT_FOUND", "METER_NOT_FOUND", "org_1"),
        ("GetSubscription", "OK", "", "org_2"),
    ]
    assert [line["request_id"] for line in calls[:2]] == ["req-1", "req-1"]
    assert {line["caller"] for line in calls} == {"test"}
    assert all(0 < line["ms"] < 15_000 for line in calls)


@pytest.mark.usefixtures("published_catalog")
async def test_no_token_and_no_property_reaches_the_log_of_a_process(database_url: str, tmp_path: Path) -> None:
    secret, value = "sk_live_never_to_be_seen", "customer-said-this"
    async with processes.servers(database_url, tmp_path, 1, processes.STOPS_SOON) as (one,), one.channel() as channel:
        stub = processes.usage_stub(channel)
        kept = usage_pb2.RecordUsageRequest(
            account_id="org_1", event_id="run_1", meter="runs", properties={"note": value}
        )
        await stub.RecordUsage(kept, metadata=processes.METADATA)
        await refusals.refused(stub.RecordUsage(kept, metadata=(("authorization", f"Bearer {secret}"),)))
        kept.properties["note"] += "!"
        await refusals.refused(stub.RecordUsage(kept, metadata=processes.METADATA))
        # Postgres quotes the row in what it says about this.
        await _refuse_all_rows(database_url)
        kept.event_id = "run_2"
        refusal = await refusals.refused(stub.RecordUsage(kept, metadata=processes.METADATA))
        assert refusal.code is grpc.StatusCode.INTERNAL
        await one.kill(signal.SIGTERM)
    text = one.log.read_text()
    for part in (secret, value, processes.TOKEN):
        assert part not in text
    # gRPC's core writes a line of its own when the listening socket ends.
    entries = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    calls = [line for line in entries if line["event"] == "call"]
    assert [line["code"] for line in calls] == ["OK", "UNAUTHENTICATED", "ALREADY_EXISTS", "INTERNAL"]
    assert all({"method", "caller", "account", "request_id", "ms"} <= set(line) for line in calls)


async def _refuse_all_rows(database_url: str) -> None:
    engine = sa.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE usage_events ADD CONSTRAINT broken CHECK (false) NOT VALID"))
    engine.dispose()
