"""A complete caller: a service that checks the quota before each run and records the usage after it.

Try it while `make dev` runs: .venv/bin/python examples/run_service.py org_42 Besides the stubs it needs
googleapis-common-protos, to read how long an overloaded server asks to wait.
"""

import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from billing.v1 import decision_pb2, quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc

# A user waits for the check. The record may take longer, because usage that is not recorded is not charged.
CHECK_SECONDS, RECORD_SECONDS = 0.5, 3.0
PAUSES_SECONDS = (0.1, 0.4, 1.6, 6.4)

# The call was not made, or its outcome is unknown. A repeat of usage that was recorded is answered as a duplicate.
REPEATABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED}


def pause_before_repeating(error: grpc.RpcError, pause_seconds: float) -> float | None:
    """Return the seconds to wait before repeating the call, at least `pause_seconds`; None: a repeat would not help."""
    details = _details(error)
    if error.code() in REPEATABLE:
        return pause_seconds
    if error.code() is grpc.StatusCode.CANCELLED and not any(
        detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in details
    ):
        # From gRPC's core, if the server has ended or is overloaded. This client never cancels calls.
        return pause_seconds
    retry_info = error_details_pb2.RetryInfo()
    # Without RetryInfo, gRPC itself has refused the message as too large; a repeat would fail again.
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and any(detail.Unpack(retry_info) for detail in details):
        named_seconds: float = retry_info.retry_delay.ToTimedelta().total_seconds()
        return max(pause_seconds, named_seconds)
    return None


def _details(error: grpc.RpcError) -> Sequence[any_pb2.Any]:
    trailing: dict[str, Any] = dict(map(tuple, error.trailing_metadata() or ()))  # type: ignore[arg-type]
    details: Sequence[any_pb2.Any] = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b"")).details
    return details


class Denied(Exception):
    """The account may not run this now; the answer says why, until when, and which plans would allow it."""

    def __init__(self, answer: quota_pb2.CheckQuotaResponse) -> None:
        super().__init__(answer.message)
        self.answer = answer


class RunService:
    """Does work for accounts, and counts it on the meter `runs`."""

    def __init__(
        self, channel: grpc.Channel, token: str, *, fail_open: bool, pauses_seconds: Sequence[float] = PAUSES_SECONDS
    ) -> None:
        """`fail_open`: whether to run unchecked in an outage; a refused customer may cost more than a free run."""
        self._quota = quota_pb2_grpc.QuotaServiceStub(channel)
        self._usage = usage_pb2_grpc.UsageServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._fail_open = fail_open
        self._pauses_seconds = pauses_seconds

    def run(self, account_id: str, run_id: str, work: Callable[[], None]) -> usage_pb2.RecordUsageResponse:
        """Do the work if the account may. Raises Denied, or RpcError in an outage; then repeat with the same id."""
        self._check(account_id)
        work()
        return self.record(account_id, run_id)

    def record(
        self, account_id: str, run_id: str, finished_at: datetime | None = None
    ) -> usage_pb2.RecordUsageResponse:
        """Count a run. One that could not be recorded at once is recorded later with when it finished.

        Raises RpcError as `run` does, and ValueError on a time without a zone: a local time that is sent as if it were
        UTC is hours wrong, and may land in another period.
        """
        # The run's id is the event's id, so neither a repeated call nor a repeated run is counted twice.
        event = usage_pb2.RecordUsageRequest(account_id=account_id, event_id=run_id, meter="runs")
        if finished_at is not None:
            if finished_at.utcoffset() is None:
                raise ValueError(f"finished_at: {finished_at.isoformat()} has no zone; use datetime.now(UTC)")
            event.occurred_at.FromDatetime(finished_at)
        for pause_seconds in self._pauses_seconds:
            try:
                return self._usage.RecordUsage(event, timeout=RECORD_SECONDS, metadata=self._metadata)
            except grpc.RpcError as error:
                longer_seconds = pause_before_repeating(error, pause_seconds)
                if longer_seconds is None:
                    raise
            time.sleep(longer_seconds)
        return self._usage.RecordUsage(event, timeout=RECORD_SECONDS, metadata=self._metadata)

    def _check(self, account_id: str) -> None:
        request = quota_pb2.CheckQuotaRequest(account_id=account_id, meter="runs")
        try:
            answer = self._quota.CheckQuota(request, timeout=CHECK_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            # An invalid request fails again; only an outage is a reason to run without a check.
            if self._fail_open and pause_before_repeating(error, 0) is not None:
                return
            raise
        if answer.decision != decision_pb2.DECISION_ALLOWED:
            raise Denied(answer)


if __name__ == "__main__":
    with grpc.insecure_channel("127.0.0.1:50051") as to_billing:
        service = RunService(to_billing, "dev-token", fail_open=False)
        print(service.run(sys.argv[1], str(uuid.uuid4()), lambda: print("working")))
