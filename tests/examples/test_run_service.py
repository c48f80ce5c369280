import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import grpc_testing  # type: ignore[import-untyped]  # it ships no types
import pytest

from billing.v1 import decision_pb2, quota_pb2, usage_pb2
from examples import run_service

QUOTA = quota_pb2.DESCRIPTOR.services_by_name["QuotaService"]
USAGE = usage_pb2.DESCRIPTOR.services_by_name["UsageService"]
CHECK = QUOTA.methods_by_name["CheckQuota"]
RECORD = USAGE.methods_by_name["RecordUsage"]

ALLOWED = quota_pb2.CheckQuotaResponse(decision=decision_pb2.DECISION_ALLOWED)
RECORDED = usage_pb2.RecordUsageResponse(used=1)
SECONDS_MAX = 5


class Server:
    """Answers the calls of a service under test, one by one, as the script says."""

    def __init__(self) -> None:
        self.channel = grpc_testing.channel([QUOTA, USAGE], grpc_testing.strict_real_time())
        self.worked: list[str] = []

    def run(self, *, fail_open: bool = False) -> futures.Future[usage_pb2.RecordUsageResponse]:
        service = run_service.RunService(self.channel, "secret", fail_open=fail_open, pauses_seconds=(0, 0))
        return in_background(service.run, "org_1", "run_1", lambda: self.worked.append("run_1"))

    def answer(self, method: object, response: object, code: grpc.StatusCode = grpc.StatusCode.OK) -> Any:  # noqa: ANN401 - any message
        """Take the next call of a method, answer it, and return its request."""
        metadata, request, call = in_background(self.channel.take_unary_unary, method).result(SECONDS_MAX)
        assert ("authorization", "Bearer secret") in metadata
        call.terminate(response, (), code, "")
        return request


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


def test_failing_open_runs_unasked_and_still_records(server: Server) -> None:
    running = server.run(fail_open=True)
    server.answer(CHECK, None, grpc.StatusCode.UNAVAILABLE)
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
