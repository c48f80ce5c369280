"""Bad requests name their field and change nothing."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from billing_svc.metering.usage import rules
from tests.billing_svc import books, refusals
from tests.billing_svc.service import Billing

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
NO_METER = (grpc.StatusCode.NOT_FOUND, "METER_NOT_FOUND")
NO_OPERATION = (grpc.StatusCode.NOT_FOUND, "OPERATION_NOT_FOUND")

# What is wrong with an account and with what is asked for, the same for a check and a record.
COMMON = [
    ({"account_id": ""}, INVALID, "account_id"),
    ({"account_id": "x" * 129}, INVALID, "account_id"),
    ({"account_id": "a b"}, INVALID, "account_id"),
    ({"account_id": "org\n1"}, INVALID, "account_id"),
    ({"account_id": "org\0"}, INVALID, "account_id"),
    ({"account_id": "\u043erg"}, INVALID, "account_id"),
    ({"meter": ""}, INVALID, "meter"),
    ({"meter": "Runs"}, INVALID, "meter"),
    ({"meter": "x" * 65}, INVALID, "meter"),
    ({"meter": "runs", "operation": "markets"}, INVALID, "operation"),
    ({"meter": "", "operation": "1x"}, INVALID, "operation"),
    ({"meter": "nothing"}, NO_METER, "meter"),
    ({"meter": "", "operation": "nothing"}, NO_OPERATION, "operation"),
    ({"quantity": 0}, INVALID, "quantity"),
    ({"quantity": -1}, INVALID, "quantity"),
    ({"quantity": 10**12 + 1}, INVALID, "quantity"),
    ({"quantity": 2**63 - 1}, INVALID, "quantity"),
    ({"quantity": -(2**63)}, INVALID, "quantity"),
]

FAR = timestamp_pb2.Timestamp(seconds=253_402_300_799, nanos=999_999_999)
RECORD = [
    *COMMON,
    ({"event_id": ""}, INVALID, "event_id"),
    ({"event_id": "x" * 256}, INVALID, "event_id"),
    ({"event_id": "run 1"}, INVALID, "event_id"),
    ({"level": -1}, INVALID, "level"),
    ({"level": 3}, INVALID, "level"),
    ({"level": 3, "quantity": 3}, INVALID, "level"),
    ({"retry_attempt": -1}, INVALID, "retry_attempt"),
    ({"retry_attempt": 1_001}, INVALID, "retry_attempt"),
    ({"reservation_id": "x" * 256}, INVALID, "reservation_id"),
    ({"if_exceeded": 17}, INVALID, "if_exceeded"),
    ({"properties": {str(n): "" for n in range(51)}}, INVALID, "properties"),
    ({"properties": {"": "x"}}, INVALID, "properties"),
    ({"properties": {"x" * 65: "x"}}, INVALID, "properties"),
    ({"properties": {"\u20ac" * 22: "x"}}, INVALID, "properties"),
    ({"properties": {"a": "x" * 513}}, INVALID, "properties['a']"),
    ({"properties": {"a": "\u20ac" * 171}}, INVALID, "properties['a']"),
    ({"properties": {"a": "\0"}}, INVALID, "properties"),
    ({"occurred_at": FAR}, INVALID, "occurred_at"),
    ({"occurred_at": timestamp_pb2.Timestamp()}, INVALID, "occurred_at"),
    ({"occurred_at": timestamp_pb2.Timestamp(seconds=2**62)}, INVALID, "occurred_at"),
    ({"occurred_at": timestamp_pb2.Timestamp(seconds=-(2**62))}, INVALID, "occurred_at"),
    ({"occurred_at": timestamp_pb2.Timestamp(nanos=-1)}, INVALID, "occurred_at"),
    ({"occurred_at": timestamp_pb2.Timestamp(nanos=10**9)}, INVALID, "occurred_at"),
]


def _named(refusal: refusals.Refusal) -> str:
    """The field that an error names: in BadRequest, or before the colon of its message."""
    return refusal.fields[0] if refusal.fields else refusal.message.partition(":")[0]


@pytest.mark.parametrize(("changes", "status", "field"), RECORD)
async def test_a_record_that_is_refused_changes_nothing(
    billing: Billing, changes: Mapping[str, Any], status: tuple[grpc.StatusCode, str], field: str
) -> None:
    before = await books.contents(billing.engine)
    given = {"account_id": "org_1", "event_id": "run_1", "meter": "runs", **changes}
    refusal = await refusals.refused(billing.usage.RecordUsage(usage_pb2.RecordUsageRequest(**given)))
    assert (refusal.code, refusal.reason) == status
    assert refusal.domain == "billing.internal"
    assert _named(refusal) == field
    assert await books.contents(billing.engine) == before


@pytest.mark.parametrize(("changes", "status", "field"), COMMON)
async def test_a_check_that_is_refused_changes_nothing(
    billing: Billing, changes: Mapping[str, Any], status: tuple[grpc.StatusCode, str], field: str
) -> None:
    before = await books.contents(billing.engine)
    request = quota_pb2.CheckQuotaRequest(**{"account_id": "org_1", "meter": "runs", **changes})
    refusal = await refusals.refused(billing.quota.CheckQuota(request))
    assert (refusal.code, refusal.reason) == status
    assert _named(refusal) == field
    assert await books.contents(billing.engine) == before


async def test_all_violations_come_in_one_answer(billing: Billing) -> None:
    request = usage_pb2.RecordUsageRequest(quantity=0, retry_attempt=-1, properties={"": ""})
    refusal = await refusals.refused(billing.usage.RecordUsage(request))
    assert refusal.fields == ("account_id", "event_id", "meter", "quantity", "retry_attempt", "properties")


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"account_id": ""}, INVALID, "account_id"),
        ({"meters": ["runs", "NO"]}, INVALID, "meters[1]"),
        ({"meters": ["x"] * 101}, INVALID, "meters"),
        ({"meters": ["runs", "nothing"]}, NO_METER, "meter"),
    ],
)
async def test_a_bad_question_for_usage_is_refused_by_field(
    billing: Billing, changes: Mapping[str, Any], status: tuple[grpc.StatusCode, str], field: str
) -> None:
    request = usage_pb2.GetUsageRequest(**{"account_id": "org_1", **changes})
    refusal = await refusals.refused(billing.usage.GetUsage(request))
    assert (refusal.code, refusal.reason) == status
    assert _named(refusal) == field


@pytest.mark.parametrize("catalog_name", ["kalshibook"])
async def test_an_operation_whose_units_are_too_many_changes_nothing(billing: Billing) -> None:
    before = await books.contents(billing.engine)
    quantity = 10**12 // 5 + 1
    record = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="e_1", operation="orderbook", quantity=quantity)
    check = quota_pb2.CheckQuotaRequest(account_id="org_1", operation="orderbook", quantity=quantity)
    for call in (billing.usage.RecordUsage(record), billing.quota.CheckQuota(check)):
        refusal = await refusals.refused(call)
        assert (refusal.code, refusal.reason) == INVALID
        assert refusal.fields == ("quantity",)
    assert await books.contents(billing.engine) == before


async def test_a_denied_record_of_a_new_account_writes_nothing_at_all(billing: Billing) -> None:
    before = await books.contents(billing.engine)
    answer = await billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(
            account_id="org_1",
            event_id="run_1",
            meter="runs",
            quantity=6,
            if_exceeded=usage_pb2.IF_EXCEEDED_REJECT,
        )
    )
    assert (answer.decision, answer.reason) == (
        decision_pb2.DECISION_DENIED,
        decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED,
    )
    assert (answer.used, answer.cost, answer.included, answer.remaining) == (0, 0, 5, 5)
    assert await books.contents(billing.engine) == before


async def test_a_denied_record_of_a_known_account_writes_nothing_and_is_not_remembered(billing: Billing) -> None:
    await billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs", quantity=5)
    )
    before = await books.contents(billing.engine)
    request = usage_pb2.RecordUsageRequest(
        account_id="org_1", event_id="run_2", meter="runs", if_exceeded=usage_pb2.IF_EXCEEDED_REJECT
    )
    denied = await billing.usage.RecordUsage(request)
    assert (denied.decision, denied.duplicate) == (decision_pb2.DECISION_DENIED, False)
    assert list(denied.upgrade_plans) == ["pro"]
    assert await books.contents(billing.engine) == before
    await books.subscribe(billing.engine, "org_1", "pro", since=billing.clock.now())
    admitted = await billing.usage.RecordUsage(request)
    assert (admitted.decision, admitted.duplicate, admitted.used) == (decision_pb2.DECISION_ALLOWED, False, 1)


@pytest.mark.parametrize("beyond", [timedelta(minutes=5, seconds=30), timedelta(days=3)])
async def test_events_of_the_future_are_refused_with_the_limit(billing: Billing, beyond: timedelta) -> None:
    before = await books.contents(billing.engine)
    event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs")
    event.occurred_at.FromDatetime(billing.clock.now() + beyond)
    refusal = await refusals.refused(billing.usage.RecordUsage(event))
    assert (refusal.code, refusal.reason, refusal.fields) == (*INVALID, ("occurred_at",))
    assert "5 minutes" in refusal.message
    assert await books.contents(billing.engine) == before
    event.occurred_at.FromDatetime(billing.clock.now() + timedelta(minutes=4, seconds=30))
    assert (await billing.usage.RecordUsage(event)).used == 1


async def test_events_past_the_retention_are_refused_with_the_limit(billing: Billing) -> None:
    event = usage_pb2.RecordUsageRequest(account_id="org_1", event_id="run_1", meter="runs")
    event.occurred_at.FromDatetime(billing.clock.now() - rules.RETENTION - timedelta(seconds=30))
    refusal = await refusals.refused(billing.usage.RecordUsage(event))
    assert (refusal.code, refusal.reason, refusal.fields) == (*INVALID, ("occurred_at",))
    assert f"{rules.RETENTION.days} days" in refusal.message
    event.occurred_at.FromDatetime(billing.clock.now() - rules.RETENTION + timedelta(seconds=30))
    assert (await billing.usage.RecordUsage(event)).used == 1


def test_the_bounds_of_when_it_happened_are_exact() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    tick = timedelta(microseconds=1)
    for at in (now + rules.FUTURE_TOLERANCE, now - rules.RETENTION, now):
        assert rules.check_occurred_at(at, now) == at
    assert rules.check_occurred_at(None, now) == now
    for at in (now + rules.FUTURE_TOLERANCE + tick, now - rules.RETENTION - tick):
        with pytest.raises(Exception, match="occurred_at"):
            rules.check_occurred_at(at, now)
