"""Chooses the transport of a process."""

from typing import Literal, TypeAlias

import grpc
import structlog

from billing_svc.api.transport import aio, fast_interface, serving

_log = structlog.get_logger("rpc")

Name: TypeAlias = Literal["fast", "aio"]


def server_class(name: Name) -> type[serving.Server]:
    """Return the named transport, but `aio` for `fast` if gRPC's private interface differs from what `fast` needs."""
    if name == "fast":
        differences = fast_interface.differences()
        if not differences:
            from billing_svc.api.transport import fast  # noqa: PLC0415 - may fail on another grpcio

            return fast.FastServer
        _log.warning("fast_transport_unusable", differences=differences, grpcio=grpc.__version__, instead="aio")
    return aio.AioServer
