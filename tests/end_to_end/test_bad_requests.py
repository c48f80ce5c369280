"""An invalid request is refused with its code, its reason and the name of the field, and changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
import httpx
import psycopg
import pytest
from google.protobuf import message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from psycopg import sql

from billing.v1 import quota_pb2, subscription_pb2, usage_pb2
from billing_svc.platform.database import tables
from tests.end_to_end import dev_process, python_client

TOO_LONG = "a" * 129
TOO_MUCH = 10**12 + 1

CHECK, RECORD = quota_pb2.CheckQuotaRequest, usage_pb2.RecordUsageRequest
CHECKOUT, USAGE = subscription_pb2.CreateCheckoutRequest, usage_pb2.GetUsageRequest
SUBSCRIPTION = subscription_pb2.GetSubscriptionRequest

GOOD: dict[type[message.Message], dict[str, Any]] = {
    CHECK: {"meter": "runs"},
    RECORD: {"meter": "runs", "event_id": "bad"},
    CHECKOUT: {"plan": "pro", "price": "monthly"},
    USAGE: {},
    SUBSCRIPTION: {},
}


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that differs from a valid request in a field, and the expected refusal."""

    name: str
    kind: type[message.Message]
    field: str
    changed: dict[str, Any]
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    reason: str = "INVALID_REQUEST"


def bad(name: str, kind: type[message.Message], field: str, value: object, **changed: object) -> Bad:
    return Bad(name, kind, field, {field: value, **changed})


def not_found(name: str, kind: type[message.Message], field: str, **changed: object) -> Bad:
    return Bad(name, kind, field, changed, grpc.StatusCode.NOT_FOUND, f"{field.upper()}_NOT_FOUND")


BAD = [
    *(bad("empty account", kind, "account_id", "") for kind in GOOD),
    *(bad("overlong account", kind, "account_id", TOO_LONG) for kind in GOOD),
    bad("account with a space", CHECK, "account_id", "org 1"),
    bad("account beyond ASCII", RECORD, "account_id", "örg"),
    *(bad("no quantity", kind, "quantity", 0) for kind in (CHECK, RECORD, CHECKOUT)),
    *(bad("negative quantity", kind, "quantity", -1) for kind in (CHECK, RECORD, CHECKOUT)),
    *(bad("huge quantity", kind, "quantity", TOO_MUCH) for kind in (CHECK, RECORD, CHECKOUT)),
    bad("largest quantity", RECORD, "quantity", 2**63 - 1),
    *(not_found("unknown meter", kind, "meter", meter="jogs") for kind in (CHECK, RECORD)),
    not_found("unknown meter", USAGE, "meter", meters=["jogs"]),
    *(not_found("unknown operation", kind, "operation", meter="", operation="jog") for kind in (CHECK, RECORD)),
    bad("meter of no such form", CHECK, "meter", "Runs!"),
    bad("no meter", RECORD, "meter", ""),
    bad("meter and operation", CHECK, "operation", "jog"),
    bad("no event id", RECORD, "event_id", ""),
    bad("overlong event id", RECORD, "event_id", "e" * 256),
    bad("too many properties", RECORD, "properties", dict.fromkeys(map(str, range(51)), "")),
    bad("a level of a consumable", RECORD, "level", 3),
    not_found("unknown plan", CHECKOUT, "plan", plan="platinum"),
    not_found("unknown price", CHECKOUT, "price", price="daily"),
    Bad(
        "plan that is not sold",
        CHECKOUT,
        "plan",
        {"plan": "free", "price": ""},
        grpc.StatusCode.FAILED_PRECONDITION,
        "PLAN_NOT_SOLD",
    ),
    bad("seats of a plan without", CHECKOUT, "quantity", 2),
    bad("foreign success page", CHECKOUT, "success_url", "https://evil.example/"),
    bad("foreign cancel page", CHECKOUT, "cancel_url", "https://evil.example/"),
    bad("page that only looks ours", CHECKOUT, "success_url", "http://localhost:3000@evil.example/"),
    bad("page that is a script", CHECKOUT, "success_url", "javascript:alert(1)"),
    bad("no e-mail address", CHECKOUT, "customer_email", "nobody"),
]


@pytest.fixture
def snapshot(dev: dev_process.DevProcess, account: str) -> Callable[[], dict[str, object]]:
    """Return a function that reads the account's rows, the number of accounts and its writes at Stripe."""

    def look() -> dict[str, object]:
        seen: dict[str, object] = {}
        with psycopg.connect(dev.database) as connection:
            for table in tables.metadata.sorted_tables:
                if "account_id" in table.c:
                    query = sql.SQL("SELECT * FROM {} WHERE account_id = %s").format(sql.Identifier(table.name))
                    # As text: rows contain documents, which cannot be sorted.
                    seen[table.name] = sorted(map(repr, connection.execute(query, [account])))
            seen["accounts in all"] = connection.execute("SELECT count(*) FROM accounts").fetchone()
        with httpx.Client(trust_env=False) as browser:
            asked = browser.get(f"http://127.0.0.1:{dev.ports[2]}/_sandbox/requests").json()
        # Of this account alone: the worker still sends what tests before this one left to it.
        seen["writes at Stripe"] = [one for one in asked if one["method"] == "POST" and account in repr(one["params"])]
        return seen

    return look


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case.kind.__name__}: {case.name}")
def test_a_bad_request_is_refused_and_changes_nothing(
    client: python_client.Client, account: str, snapshot: Callable[[], dict[str, object]], case: Bad
) -> None:
    client.record(account, "good")
    before = snapshot()
    request = case.kind(**{"account_id": account, **GOOD[case.kind], **case.changed})
    with pytest.raises(grpc.RpcError) as raised:
        client.call(rpc_of(client, case.kind), request)
    code, reason, fields = said(raised.value)
    assert (code, reason) == (case.code, case.reason)
    assert case.field in fields
    assert snapshot() == before
    assert client.check(account).used == 1


def test_all_that_is_wrong_with_a_request_is_said_at_once(client: python_client.Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.call(client.quota.CheckQuota, CHECK(meter="Runs!", quantity=-1))
    assert said(raised.value)[2] == {"account_id", "meter", "quantity"}


def test_an_event_id_with_other_content_is_refused_and_counts_nothing(
    client: python_client.Client, account: str
) -> None:
    client.record(account, "run_1")
    with pytest.raises(grpc.RpcError) as raised:
        client.record(account, "run_1", quantity=2)
    assert said(raised.value)[:2] == (grpc.StatusCode.ALREADY_EXISTS, "EVENT_ID_REUSED")
    assert client.check(account).used == 1


def test_bytes_that_are_no_message_are_an_invalid_argument(dev: dev_process.DevProcess) -> None:
    with grpc.insecure_channel(dev.grpc, python_client.CHANNEL_OPTIONS) as channel:
        rpc: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/billing.v1.QuotaService/CheckQuota")
        with pytest.raises(grpc.RpcError) as raised:
            rpc(b"\xff\xff", timeout=python_client.CALL_SECONDS_MAX, metadata=(("authorization", "Bearer dev-token"),))
    assert said(raised.value)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", "Bearer other"),), (("authorization", "dev-token"),), (("authorization", ""),)],
    ids=["none", "unknown", "no scheme", "empty"],
)
def test_a_caller_without_a_known_token_is_refused(
    client: python_client.Client, account: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    request = RECORD(account_id=account, event_id="run_1", meter="runs")
    with pytest.raises(grpc.RpcError) as raised:
        client.usage.RecordUsage(request, timeout=python_client.CALL_SECONDS_MAX, metadata=metadata)
    assert said(raised.value)[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert client.check(account).used == 0


def rpc_of(client: python_client.Client, kind: type[message.Message]) -> "grpc.UnaryUnaryMultiCallable[Any, Any]":
    rpcs: dict[type[message.Message], Any] = {
        CHECK: client.quota.CheckQuota,
        RECORD: client.usage.RecordUsage,
        CHECKOUT: client.subscriptions.CreateCheckout,
        USAGE: client.usage.GetUsage,
        SUBSCRIPTION: client.subscriptions.GetSubscription,
    }
    return cast("grpc.UnaryUnaryMultiCallable[Any, Any]", rpcs[kind])


def said(error: BaseException) -> tuple[grpc.StatusCode, str, set[str]]:
    """Return an error's code, its reason, and the fields that it names."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} came without details"
    reason, fields = "", set()
    for detail in status.details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            assert info.domain == "billing.internal"
            reason = info.reason
            fields |= set(info.metadata)
        elif detail.Unpack(request):
            fields |= {violation.field for violation in request.field_violations}
    return error.code(), reason, fields
