"""What a caller sees of an error: its status, and the details that its trailers carry."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that failed. `fields` are those that its BadRequest names."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    metadata: Mapping[str, str]
    fields: tuple[str, ...]
    retry_after_seconds: float | None
    request_ids: tuple[str, ...]
    trailers: str


def of(error: grpc.aio.AioRpcError) -> Refusal:
    """Decode an error as a caller would."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what is read of a call
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details if status is not None else ():
        assert any(detail.Unpack(known) for known in (info, bad, retry)), detail.type_url
        has_retry = has_retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    trailers = tuple(error.trailing_metadata() or ())
    return Refusal(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        domain=info.domain,
        metadata=dict(info.metadata),
        fields=tuple(violation.field for violation in bad.field_violations),
        retry_after_seconds=retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
        request_ids=tuple(str(value) for key, value in trailers if key == "x-request-id"),
        trailers=repr(trailers),
    )


async def refused(call: Awaitable[object]) -> Refusal:
    """Await a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return of(caught.value)
