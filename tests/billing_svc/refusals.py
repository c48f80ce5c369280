"""What a caller sees of an error: its status, and the details that its trailers carry."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

T = TypeVar("T")

# Longer than any call is refused while others hold its object at Stripe.
_REPEATED_SECONDS_MAX = 30


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


async def repeated(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call while it is answered UNAVAILABLE, as the contract asks callers to."""
    async with asyncio.timeout(_REPEATED_SECONDS_MAX):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.05)
