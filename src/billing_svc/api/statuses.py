"""Turns an error into a gRPC status with google.rpc details."""

import functools
from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from billing_svc.platform import errors

ERROR_DOMAIN = "billing.internal"
# A status is lost in transit if its trailers exceed about 8 KiB. The message is sent twice: as text, where a byte that
# is not ASCII takes three bytes, and in the details, which base64 makes a third longer. With these bounds both fit.
MESSAGE_BYTES_MAX = 1024
DETAILS_BYTES_MAX = 3072


def to_status(error: errors.BillingError) -> grpc.Status:
    """Return code, text and details of an error."""
    # Cached: refusing a call must cost much less than answering it.
    return _shedding(error.message, error.retry_after_seconds) if type(error) is errors.Overloaded else _status(error)


@functools.lru_cache(maxsize=16)  # the few Overloaded messages are fixed texts of this service
def _shedding(message: str, retry_after_seconds: float) -> grpc.Status:
    return _status(errors.Overloaded(message, retry_after_seconds))


def _status(error: errors.BillingError) -> grpc.Status:
    status = status_pb2.Status(
        code=getattr(code_pb2, error.code.name),
        message=error.message.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore"),
    )
    _add(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    if isinstance(error, errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.InvalidRequest):
        _add(status, _bad_request(error.violations, DETAILS_BYTES_MAX - status.ByteSize()))
    return rpc_status.to_status(status)


def _add(status: status_pb2.Status, detail: message.Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    if status.ByteSize() + packed.ByteSize() <= DETAILS_BYTES_MAX:
        status.details.append(packed)


def _bad_request(violations: Sequence[errors.FieldViolation], bytes_max: int) -> error_details_pb2.BadRequest:
    """Return the first violations, as many as fit into `bytes_max`."""
    bad = error_details_pb2.BadRequest()
    for one in violations:
        bad.field_violations.add(field=one.field, description=one.description)
        # Packing adds the type's name and a few bytes.
        if bad.ByteSize() + len(bad.DESCRIPTOR.full_name) + 64 > bytes_max:
            del bad.field_violations[-1]
            break
    return bad
