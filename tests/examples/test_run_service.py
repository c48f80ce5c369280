import threading
import time
from collections.abc import Callable
from concurrent import futures
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import grpc
import grpc_testing  # type: ignore[import-untyped]  # it ships no types
import pytest
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from examples import run_service

QUOTA = quota_pb2.DESCRIPTOR.services_by_name["QuotaService"]
USAGE = usage_pb2.DESCRIPTOR.services_by_name["UsageService"]
CHECK = QUOTA.methods_by_name["CheckQuota"]
RECORD = USAGE.methods_by_name["RecordUsage"]

ALLOWED = quota_pb2.CheckQuotaResponse(decision=decision_pb2.DECISION_ALLOWED)
RECORDED = usage_pb2.RecordUsageResponse(used=1)
SECONDS_MAX = 5
RETRY_SECONDS = 0.3
OVERLOADED = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="billing.internal")
RETRY_INFO = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=round(RETRY_SECONDS * 1e9)))


class Server:
    """Answers the calls of a service under test, one by one, as the script says."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel([QUOTA, USAGE], grpc_testing.strict_real_time())
        self.worked: list[str] = []

    def run(self, *, fail_open: bool = False) -> futures.Future[usage_pb2.RecordUsageResponse]:
        service = run_service.RunService(self.channel, "secret", fail_open=fail_open, pauses_seconds=(0, 0))
        return in_background(service.run, "org_1", "run_1", lambda: self.worked.append("run_1"))

    def answer(
        self, method: object, response: object, code: grpc.StatusCode = grpc.StatusCode.OK, *details: message.Message
    ) -> Any:  # noqa: ANN401 - any message
        """Take the next call of a method, answer it, and return its request."""
        trailing = (("grpc-status-details-bin", packed(*details)),) if details else ()
        metadata, request, call = in_background(self.channel.take_unary_unary, method).result(SECONDS_MAX)
        assert ("authorization", "Bearer secret") in metadata
        call.terminate(response, trailing, code, "")
        return request


def packed(*details: message.Message) -> bytes:
    status = status_pb2.Status()
    for one in details:
        any_of = any_pb2.Any()
        any_of.Pack(one)
        status.details.append(any_of)
    serialized: bytes = status.SerializeToString()
    return serialized


def in_background(function: Callable[..., Any], *arguments: object) -> futures.Future[Any]:
    """Call in a thread of its own, which ends with the process: a scripted call that never comes is waited for."""
    future: futures.Future[Any] = futures.Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001 - it is passed on
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


@pytest.fixture(name="server")
def scripted_server() -> Server:
    return Server()


def test_an_allowed_run_is_recorded_under_its_own_id(server: Server) -> None:
    running = server.run()
    asked = server.answer(CHECK, ALLOWED)
    recorded = server.answer(RECORD, RECORDED)
    assert running.result(SECONDS_MAX) == RECORDED
    assert (asked.account_id, asked.meter) == ("org_1", "runs")
    assert (recorded.account_id, recorded.event_id, recorded.meter) == ("org_1", "run_1", "runs")
    assert server.worked == ["run_1"]


def test_a_run_that_is_recorded_later_says_when_it_finished(server: Server) -> None:
    service = run_service.RunService(server.channel, "secret", fail_open=False)
    new_york = timezone(timedelta(hours=-5))
    recording = in_background(service.record, "org_1", "run_1", datetime(2026, 5, 31, 20, tzinfo=new_york))
    recorded = server.answer(RECORD, RECORDED)
    assert recording.result(SECONDS_MAX) == RECORDED
    assert recorded.occurred_at.ToDatetime(UTC) == datetime(2026, 6, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="no zone"):
        service.record("org_1", "run_1", datetime(2026, 5, 31, 20))  # noqa: DTZ001 - that is refused


def test_a_denied_run_does_no_work_and_records_nothing(server: Server) -> None:
    running = server.run()
    denial = quota_pb2.CheckQuotaResponse(
        decision=decision_pb2.DECISION_DENIED, reason=decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
    )
    server.answer(CHECK, denial)
    with pytest.raises(run_service.Denied) as raised:
        running.result(SECONDS_MAX)
    assert raised.value.answer == denial
    assert server.worked == []


@pytest.mark.parametrize("code", sorted(run_service.REPEATABLE, key=str))
def test_a_record_of_unknown_outcome_is_repeated_with_the_same_id(server: Server, code: grpc.StatusCode) -> None:
    running = server.run()
    server.answer(CHECK, ALLOWED)
    first = server.answer(RECORD, None, code)
    second = server.answer(RECORD, usage_pb2.RecordUsageResponse(used=1, duplicate=True))
    assert running.result(SECONDS_MAX).duplicate
    assert first == second
    assert server.worked == ["run_1"], "the work is not repeated with the call"


def test_a_record_that_grpc_s_core_ended_is_repeated(server: Server) -> None:
    running = server.run()
    server.answer(CHECK, ALLOWED)
    first = server.answer(RECORD, None, grpc.StatusCode.CANCELLED)
    assert server.answer(RECORD, RECORDED) == first
    assert running.result(SECONDS_MAX) == RECORDED


def test_a_record_that_was_turned_away_is_repeated_after_the_pause_that_the_server_names(server: Server) -> None:
    running = server.run()
    server.answer(CHECK, ALLOWED)
    began = time.monotonic()
    server.answer(RECORD, None, grpc.StatusCode.RESOURCE_EXHAUSTED, OVERLOADED, RETRY_INFO)
    server.answer(RECORD, RECORDED)
    assert time.monotonic() - began >= RETRY_SECONDS
    assert running.result(SECONDS_MAX) == RECORDED


@pytest.mark.parametrize(
    ("code", "details"),
    [(grpc.StatusCode.CANCELLED, [OVERLOADED]), (grpc.StatusCode.RESOURCE_EXHAUSTED, [])],
    ids=["cancelled-by-a-server", "too-large"],
)
def test_what_would_be_answered_the_same_is_not_repeated(
    server: Server, code: grpc.StatusCode, details: list[message.Message]
) -> None:
    running = server.run()
    server.answer(CHECK, ALLOWED)
    server.answer(RECORD, None, code, *details)
    assert code_of(running.exception) is code


def test_a_record_that_cannot_be_delivered_is_an_error_in_the_end(server: Server) -> None:
    running = server.run()
    server.answer(CHECK, ALLOWED)
    for _ in range(3):
        server.answer(RECORD, None, grpc.StatusCode.UNAVAILABLE)
    assert code_of(running.exception) is grpc.StatusCode.UNAVAILABLE


def test_a_refused_record_is_not_repeated(server: Server) -> None:
    running = server.run()
    server.answer(CHECK, ALLOWED)
    server.answer(RECORD, None, grpc.StatusCode.ALREADY_EXISTS)
    assert code_of(running.exception) is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, []),
        (grpc.StatusCode.CANCELLED, []),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, [OVERLOADED, RETRY_INFO]),
    ],
    ids=lambda one: one.name if isinstance(one, grpc.StatusCode) else "",
)
def test_failing_open_runs_unasked_and_still_records(
    server: Server, code: grpc.StatusCode, details: list[message.Message]
) -> None:
    running = server.run(fail_open=True)
    server.answer(CHECK, None, code, *details)
    server.answer(RECORD, RECORDED)
    assert running.result(SECONDS_MAX) == RECORDED


def test_failing_closed_does_no_work(server: Server) -> None:
    running = server.run()
    server.answer(CHECK, None, grpc.StatusCode.UNAVAILABLE)
    assert code_of(running.exception) is grpc.StatusCode.UNAVAILABLE
    assert server.worked == []


def test_failing_open_covers_no_mistakes(server: Server) -> None:
    running = server.run(fail_open=True)
    server.answer(CHECK, None, grpc.StatusCode.UNAUTHENTICATED)
    assert code_of(running.exception) is grpc.StatusCode.UNAUTHENTICATED
    assert server.worked == []


def code_of(exception: Callable[[float], BaseException | None]) -> grpc.StatusCode | None:
    error = exception(SECONDS_MAX)
    return error.code() if isinstance(error, grpc.RpcError) else None
