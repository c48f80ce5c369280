"""A caller that is limited to some accounts touches no other, by any RPC."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message, message_factory

from billing.v1 import errors_pb2, subscription_pb2, usage_pb2, usage_pb2_grpc
from billing_svc.api import fields, scope
from tests.billing_svc import books, refusals
from tests.billing_svc.api.methods import METHODS
from tests.billing_svc.service import LIMITED_TOKEN, Billing

# What the limited caller has, and what begins just so.
OWN, BESIDE = "org_1", "org_10"
METADATA = (("authorization", f"Bearer {LIMITED_TOKEN}"),)
# RPCs that tell of no account, and the one that the caller's groups keep it from.
OF_NO_ACCOUNT = {"ListPlans"}
WITHOUT_ITS_GROUP = {"AcceptStripeEvent"}
# RPCs whose answer, to a request that names no account, would tell of all.
OF_ALL_ACCOUNTS = {
    "ListAccounts",
    "ListAllInvoices",
    "ListFindings",
    "ListAuditEntries",
    "ListStripeEvents",
    "ReplayStripeEvents",
}


@pytest.fixture(name="channel")
async def plain_channel(billing: Billing) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(billing.address) as channel:
        yield channel


@pytest.mark.parametrize(
    ("prefix", "account_id", "is_open"),
    [
        ("org_1", "org_1", True),
        ("org_1", "org_1:team", True),
        ("org_1", "org_1/team", True),
        ("org_1", "org_10", False),
        ("org_1", "org_1_b", False),
        ("org_1", "org_1-b", False),
        ("org_1", "org_1.b", False),
        ("org_1", "org_", False),
        ("org_1", "ORG_1", False),
        ("org_1", "xorg_1", False),
        ("org_1", "", False),
        ("org_", "org_10", True),
        ("org_", "org_", True),
        ("org_", "org", False),
        ("acme:", "acme:1", True),
        ("acme:", "acme", False),
        ("acme:", "acme1", False),
        ("a|", "a|b", True),
    ],
)
def test_an_account_prefix_opens_the_accounts_that_it_covers(prefix: str, account_id: str, *, is_open: bool) -> None:
    assert scope.opens(prefix, account_id) == is_open


@pytest.mark.parametrize(
    ("prefix", "beginning", "is_open"),
    [
        # It would list org_10 too.
        ("org_1", "org_1", False),
        ("org_1", "org_1:", True),
        ("org_1", "org_1:te", True),
        ("org_1", "", False),
        ("org_", "org_", True),
        ("org_", "org_1", True),
        ("org_", "org", False),
    ],
)
def test_an_account_prefix_opens_the_lists_that_it_covers(prefix: str, beginning: str, *, is_open: bool) -> None:
    assert scope.opens_all(prefix, beginning) == is_open


def _name(method: str) -> str:
    return method.rpartition("/")[2]


def _request(method: str, account_id: str) -> message.Message:
    """Return a request about an account, wherever its type has room for one."""
    service, _, name = method[1:].partition("/")
    request: Any = message_factory.GetMessageClass(
        descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].input_type
    )()
    for field in request.DESCRIPTOR.fields:
        if field.name in {"account_id", "account_id_prefix"}:
            setattr(request, field.name, account_id)
        elif field.message_type is not None and "account_id" in field.message_type.fields_by_name:
            getattr(request, field.name).add(account_id=account_id, event_id="run_1", meter="runs")
    return request  # type: ignore[no-any-return]


async def _send(channel: grpc.aio.Channel, method: str, request: message.Message) -> refusals.Refusal | bytes:
    raw: Any = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    try:
        answer: bytes = await raw(request.SerializeToString(), metadata=METADATA)
    except grpc.aio.AioRpcError as error:
        return refusals.of(error)
    return answer


@pytest.mark.parametrize("account_id", [BESIDE, ""])
async def test_every_rpc_refuses_accounts_beside_its_own(
    billing: Billing, channel: grpc.aio.Channel, account_id: str
) -> None:
    """By the contract's own list of RPCs: a new one is refused until somebody says which account it is about."""
    await billing.usage.RecordUsage(usage_pb2.RecordUsageRequest(account_id=BESIDE, event_id="run_0", meter="runs"))
    before = await books.contents(billing.engine)
    for method in METHODS:
        answer = await _send(channel, method, _request(method, account_id))
        name = _name(method)
        if name in OF_NO_ACCOUNT:
            assert isinstance(answer, bytes), name
        elif name in WITHOUT_ITS_GROUP:
            assert isinstance(answer, refusals.Refusal), name
            assert answer.reason == "RPC_NOT_ALLOWED", name
        elif name == "BatchRecordUsage":
            assert isinstance(answer, bytes), answer
            (result,) = usage_pb2.BatchRecordUsageResponse.FromString(answer).results
            assert (result.error.code, result.error.reason) == (7, errors_pb2.ERROR_REASON_ACCOUNT_NOT_ALLOWED)
        elif name == "PreviewCost" and not account_id:  # of no account in particular
            assert isinstance(answer, refusals.Refusal), name
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, name
        else:
            assert isinstance(answer, refusals.Refusal), name
            denied = (grpc.StatusCode.PERMISSION_DENIED, "ACCOUNT_NOT_ALLOWED")
            assert (answer.code, answer.reason) == denied, name
            assert answer.metadata == {"caller": "limited"}
            assert BESIDE not in answer.message
    assert await books.contents(billing.engine) == before


async def test_the_answer_is_the_same_whether_or_not_the_account_exists(
    billing: Billing, channel: grpc.aio.Channel
) -> None:
    await billing.usage.RecordUsage(usage_pb2.RecordUsageRequest(account_id=BESIDE, event_id="run_0", meter="runs"))
    for method in METHODS:
        known, unknown = [await _send(channel, method, _request(method, one)) for one in (BESIDE, "org_11")]
        if isinstance(known, bytes):
            assert known == unknown
        else:
            assert isinstance(unknown, refusals.Refusal)
            assert (known.code, known.message, known.metadata) == (unknown.code, unknown.message, unknown.metadata)


async def test_every_rpc_about_an_account_is_open_for_its_own(channel: grpc.aio.Channel) -> None:
    for method in METHODS:
        # A list of many accounts may only be asked for what lies below.
        own = "org_1:" if _name(method) == "ListAccounts" else OWN
        answer = await _send(channel, method, _request(method, own))
        refused = isinstance(answer, refusals.Refusal) and answer.code is grpc.StatusCode.PERMISSION_DENIED
        assert refused == (_name(method) in WITHOUT_ITS_GROUP | {"ListAllInvoices", "ReplayStripeEvents"}), method


async def test_a_batch_records_what_is_its_own_and_answers_in_order(
    billing: Billing, channel: grpc.aio.Channel
) -> None:
    accounts = [OWN, BESIDE, "org_1:team", "org_2", OWN]
    request = usage_pb2.BatchRecordUsageRequest(
        events=[
            usage_pb2.RecordUsageRequest(account_id=account, event_id=f"run_{n}", meter="runs")
            for n, account in enumerate(accounts)
        ]
    )
    request.events[4].meter = "nothing"
    answer = await usage_pb2_grpc.UsageServiceStub(channel).BatchRecordUsage(request, metadata=METADATA)
    assert [result.event_id for result in answer.results] == [f"run_{n}" for n in range(5)]
    assert [result.error.code for result in answer.results] == [0, 7, 0, 7, 5]
    assert (answer.recorded, answer.failed, answer.duplicates, answer.denied) == (2, 3, 0, 0)
    assert [await books.used(billing.engine, one) for one in (OWN, "org_1:team")] == [1, 1]
    assert (await books.row_counts(billing.engine))["usage_events"] == 2
    await books.assert_balanced(billing.engine)


async def test_page_tokens_carry_no_right(billing: Billing, channel: grpc.aio.Channel) -> None:
    """A token of another account's list, or a made-up one, shows nothing but the caller's own account."""
    for account in (OWN, BESIDE):
        await billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(account_id=account, event_id="run_0", meter="runs", quantity=9)
        )
    page = await billing.subscriptions.ListAlerts(
        subscription_pb2.ListAlertsRequest(account_id=BESIDE, include_acknowledged=True, page_size=1)
    )
    assert page.next_page_token
    tokens = [page.next_page_token, fields.to_page_token(BESIDE), fields.to_page_token(f"{BESIDE}|{BESIDE}"), ""]
    lists = [method for method in METHODS if "page_token" in type(_request(method, "")).DESCRIPTOR.fields_by_name]
    assert {_name(method) for method in lists} >= OF_ALL_ACCOUNTS - {"ReplayStripeEvents"}
    for method in lists:
        for token in tokens:
            request: Any = _request(method, "org_1:" if _name(method) == "ListAccounts" else OWN)
            request.page_token = token
            answer = await _send(channel, method, request)
            if isinstance(answer, bytes):
                assert BESIDE.encode() not in answer, method
