"""What gRPC's own clients would not send: it ends no service, and who has no token takes nothing of it."""

import asyncio

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from billing.v1 import quota_pb2, usage_pb2
from billing_svc import interceptors
from tests.billing_svc import raw_http2
from tests.billing_svc.conftest import TOKEN, Billing

CHECK = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs")
METHOD = b"/billing.v1.QuotaService/CheckQuota"
AUTHORIZED = (b"authorization", b"Bearer " + TOKEN.encode())
SECONDS_MAX = 10
WAITING = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")


def _port(billing: Billing) -> int:
    return int(billing.address.rpartition(":")[2])


async def test_a_path_that_is_not_utf_8_ends_no_service(billing: Billing) -> None:
    """It ended the loop in which grpc.aio takes calls up."""
    async with billing.engine.begin() as holder:
        # A call that is under way meanwhile.
        await holder.execute(sa.text("LOCK TABLE usage_counters IN ACCESS EXCLUSIVE MODE"))
        event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs")
        recording = asyncio.ensure_future(billing.usage.RecordUsage(event))
        while not await holder.scalar(WAITING):
            pass  # each round is a query
        for path in (b"/\xff", b"\xff", b"/" + b"x" * 100):
            came = await raw_http2.call(_port(billing), path, ())
            assert b"grpc-status\x0212" in came
    assert (await recording).used == 1
    assert (await billing.quota.CheckQuota(CHECK)).used == 1


@pytest.mark.parametrize("sent", ["é".encode(), b"\xe9", b"a\0b", b"a\tb"])
async def test_a_request_id_that_cannot_be_sent_back_is_replaced(billing: Billing, sent: bytes) -> None:
    came = await raw_http2.call(
        _port(billing), METHOD, [AUTHORIZED, (b"x-request-id", sent)], CHECK.SerializeToString()
    )
    assert b"grpc-status\x010" in came
    assert sent not in came


async def test_the_first_authorization_decides(billing: Billing) -> None:
    wrong = (b"authorization", b"Bearer wrong")
    came = await raw_http2.call(_port(billing), METHOD, [wrong, AUTHORIZED], CHECK.SerializeToString())
    assert b"grpc-status\x02%d" % grpc.StatusCode.UNAUTHENTICATED.value[0] in came


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"Basic \xff")]])
async def test_a_stranger_is_refused_before_its_request_is_read(
    billing: Billing, headers: list[tuple[bytes, bytes]]
) -> None:
    came = await raw_http2.call(_port(billing), METHOD, headers, message=None)
    assert b"grpc-status\x02%d" % grpc.StatusCode.UNAUTHENTICATED.value[0] in came


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
