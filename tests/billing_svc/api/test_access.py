"""Closed by default: nothing is answered, parsed or written for a caller that was not given the RPC."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from billing_svc.api import access, interceptors
from billing_svc.api.servicers import services
from billing_svc.platform import clock
from billing_svc.platform import settings as settings_module
from billing_svc.platform.database import transactions as transactions_module
from billing_svc.programs import server
from billing_svc.stripe import client
from tests.billing_svc import books, refusals
from tests.billing_svc.api.methods import MALFORMED, METHODS
from tests.billing_svc.service import TOKEN, Billing, server_class, tokens

SECRET = "sk_live_looks_like_a_secret"

Metadata = Sequence[tuple[str, str]]


@pytest.fixture(name="channel")
async def plain_channel(billing: Billing) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that sends no token of its own."""
    async with grpc.aio.insecure_channel(billing.address) as channel:
        yield channel


async def _send(channel: grpc.aio.Channel, method: str, body: bytes, metadata: Metadata) -> refusals.Refusal:
    raw: Any = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    return await refusals.refused(raw(body, metadata=metadata))


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def test_the_contract_is_enumerated() -> None:
    assert len(METHODS) >= 27
    assert "/billing.v1.UsageService/RecordUsage" in METHODS


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("body", [b"", MALFORMED], ids=["empty", "malformed"])
async def test_every_rpc_refuses_unknown_callers_before_it_reads_the_message(
    billing: Billing, channel: grpc.aio.Channel, body: bytes
) -> None:
    before = await books.row_counts(billing.engine)
    unfit: list[Metadata] = [
        (),
        (("authorization", ""),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        _bearer(SECRET),
        _bearer(f"{TOKEN}x"),
        _bearer(TOKEN.upper()),
        (("authorization-bin", TOKEN.encode()),),  # type: ignore[list-item]  # bytes, as gRPC has it
        (("Authorization".lower(), f"Bearer {SECRET}"), ("authorization", f"Bearer {TOKEN}")),
    ]
    for method in METHODS:
        for metadata in unfit:
            refusal = await _send(channel, method, body, metadata)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), method
            assert refusal.domain == "billing.internal"
            assert SECRET not in refusal.trailers
    assert await books.row_counts(billing.engine) == before


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("body", [b"", MALFORMED], ids=["empty", "malformed"])
async def test_every_rpc_refuses_callers_without_its_group(channel: grpc.aio.Channel, body: bytes) -> None:
    for method in METHODS:
        for group in set(access.Group) - {access.ENTRIES[method]}:
            refusal = await _send(channel, method, body, _bearer(f"only-{group}"))
            denied = (grpc.StatusCode.PERMISSION_DENIED, "RPC_NOT_ALLOWED")
            assert (refusal.code, refusal.reason) == denied, (method, group)


@pytest.mark.usefixtures("each_transport")
async def test_its_own_group_is_enough_for_every_rpc(channel: grpc.aio.Channel) -> None:
    """The message is read then, and found malformed."""
    for method in METHODS:
        refusal = await _send(channel, method, MALFORMED, _bearer(f"only-{access.ENTRIES[method]}"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE"), method


@pytest.mark.parametrize(
    ("authorization", "is_known"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"BEARER  {TOKEN} ", True),
        (f"Bearer {TOKEN} {TOKEN}", False),
    ],
)
async def test_the_scheme_is_read_in_any_case(channel: grpc.aio.Channel, authorization: str, *, is_known: bool) -> None:
    refusal = await _send(channel, METHODS[0], b"", (("authorization", authorization),))
    assert (refusal.code is not grpc.StatusCode.UNAUTHENTICATED) == is_known


@pytest.mark.usefixtures("each_transport")
async def test_health_is_answered_to_anyone(billing: Billing, channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", *services.SERVICES):
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        async for answer in stub.Watch(request):
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            break
    refusal = await refusals.refused(stub.Check(health_pb2.HealthCheckRequest(service="billing.v1.Nothing")))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert billing.settings.reflection


async def _services(channel: grpc.aio.Channel, metadata: Metadata) -> set[str]:
    # Its hints are those of a synchronous channel.
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests), metadata=metadata)]
    return {service.name for answer in answers for service in answer.list_services_response.service}


async def _refused_reflection(channel: grpc.aio.Channel, metadata: Metadata) -> refusals.Refusal:
    # Sends no message: when a write meets the refusal, grpc.aio's client reports INTERNAL not the server's status.
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # as above
    return await refusals.refused(stub.ServerReflectionInfo(metadata=metadata).read())


@pytest.mark.usefixtures("each_transport")
async def test_reflection_needs_a_token_and_no_group(channel: grpc.aio.Channel) -> None:
    for metadata in ((), _bearer(SECRET)):
        refusal = await _refused_reflection(channel, metadata)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert await _services(channel, _bearer("only-check")) >= set(services.SERVICES)


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize(
    ("method", "metadata"),
    [
        ("/grpc.health.v1.Health/Watch", ()),
        ("/grpc.health.v1.Health/Check", ()),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", (("authorization", f"Bearer {TOKEN}"),)),
    ],
)
async def test_a_malformed_message_to_a_standard_service_is_refused_in_our_words(
    channel: grpc.aio.Channel, method: str, metadata: Metadata
) -> None:
    async def read() -> None:
        raw: Any = channel.stream_stream(method, request_serializer=None, response_deserializer=None)
        async for _ in raw(iter([MALFORMED]), metadata=metadata):
            raise AssertionError("answered")

    refusal = await refusals.refused(read())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert "pars" not in refusal.message.lower()
    assert "decod" not in refusal.message.lower()


@pytest.mark.usefixtures("each_transport")
async def test_a_method_that_does_not_exist_is_unimplemented(channel: grpc.aio.Channel) -> None:
    for method in ("/billing.v1.QuotaService/Nothing", "/billing.v1.Nothing/CheckQuota", "/x"):
        for metadata in ((), _bearer(TOKEN)):
            refusal = await _send(channel, method, b"", metadata)
            assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.usefixtures("each_transport")
async def test_an_rpc_that_nobody_entered_is_refused_to_a_caller_with_every_group() -> None:
    """The production interceptors around a service that has no entry."""

    async def answer(_request: empty_pb2.Empty, _context: interceptors.Context) -> empty_pb2.Empty:
        raise AssertionError("reached")

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=empty_pb2.Empty.FromString,
        response_serializer=empty_pb2.Empty.SerializeToString,
    )
    known = tokens()
    hidden = server_class()(server.routing(known))
    hidden.add_registered_method_handlers("billing.v1.Hidden", {"Call": handler})
    port = hidden.listen("127.0.0.1:0")
    await hidden.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        refusal = await _send(channel, "/billing.v1.Hidden/Call", b"", _bearer(TOKEN))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "RPC_NOT_ALLOWED")
        refusal = await _send(channel, "/billing.v1.Hidden/Call", b"", ())
        assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    await hidden.stop(grace_seconds=1)


async def test_reflection_is_answered_only_where_it_is_switched_on(
    settings: settings_module.Settings, transactions: transactions_module.Transactions, published_catalog: int
) -> None:
    assert published_catalog
    unreflected = settings.model_copy(update={"reflection": False})
    stripe = client.Stripe.from_settings(unreflected)
    running = await server.start(unreflected, transactions, stripe, clock.Clock(), tokens())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        refusal = await _refused_reflection(channel, _bearer(TOKEN))
    assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
    await running.stop(grace_seconds=1)
    await stripe.close()
