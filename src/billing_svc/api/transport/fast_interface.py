"""Checks gRPC's private interface, which `fast` uses and any release of grpcio may change."""

import functools
import importlib
import inspect
import time
from typing import Any

import grpc

_MODULE = "grpc._cython.cygrpc"
# The names that `fast` reads, and the parameters of the functions that it calls.
_NAMES = (
    "BatchOperationEvent.batch_operations",
    "BatchOperationEvent.completion_type",
    "BatchOperationEvent.tag",
    "CallDetails.method",
    "CompletionType.queue_shutdown",
    "CompletionType.queue_timeout",
    "RequestCallEvent.call",
    "RequestCallEvent.call_details",
    "RequestCallEvent.completion_type",
    "RequestCallEvent.invocation_metadata",
    "RequestCallEvent.success",
    "RequestCallEvent.tag",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
)
_PARAMETERS = {
    "Call.start_server_batch": ("self", "operations", "tag"),
    "CompletionQueue.poll": ("self", "deadline"),
    "CompletionQueue.shutdown": ("self",),
    "ReceiveCloseOnServerOperation.cancelled": ("self",),
    "ReceiveMessageOperation.message": ("self",),
    "Server.add_http2_port": ("self", "address", "server_credentials"),
    "Server.cancel_all_calls": ("self",),
    "Server.destroy": ("self",),
    "Server.register_completion_queue": ("self", "queue"),
    "Server.request_call": ("self", "call_queue", "server_queue", "tag"),
    "Server.shutdown": ("self", "queue", "tag"),
    "Server.start": ("self", "backup_queue"),
    "auth_context": ("call",),
}
_NO_FLAGS = 0
_SECONDS_MAX = 5.0


def differences() -> str:
    """Return what differs from what `fast` needs; an empty string if nothing does."""
    try:
        cygrpc = importlib.import_module(_MODULE)
    except ImportError as error:
        return f"{_MODULE}: {error}"
    found = [name for name in _NAMES if _found(cygrpc, name) is None]
    found += [name for name, expected in _PARAMETERS.items() if _parameters(_found(cygrpc, name)) != expected]
    return ", ".join(f"{_MODULE}.{name}" for name in found) or _rehearsed(cygrpc)


def _found(cygrpc: Any, name: str) -> Any:  # noqa: ANN401 - Cython's
    return functools.reduce(lambda found, part: getattr(found, part, None), name.split("."), cygrpc)


def _parameters(function: Any) -> tuple[str, ...]:  # noqa: ANN401 - as above
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # not a function, or without a readable signature
        return ()


def _rehearsed(cygrpc: Any) -> str:  # noqa: ANN401 - as above
    """Return the error of a rehearsal: make each operation, whose parameters are unreadable, and run a server."""
    try:
        _make_operations(cygrpc)
        _live(cygrpc)
    except Exception as error:  # noqa: BLE001 - `fast` would fail with the same error
        return f"{_MODULE}: {type(error).__name__}: {error}"
    return ""


def _make_operations(cygrpc: Any) -> None:  # noqa: ANN401 - as above
    cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)
    cygrpc.SendMessageOperation(b"", _NO_FLAGS)
    cygrpc.SendStatusFromServerOperation((("key", "value"),), 0, b"", _NO_FLAGS)
    cygrpc.ReceiveMessageOperation(_NO_FLAGS)
    cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
    # The attribute that a port with TLS needs.
    grpc.ssl_server_credentials([(b"key", b"certificate")])._credentials  # type: ignore[attr-defined]  # noqa: B018, SLF001


def _live(cygrpc: Any) -> None:  # noqa: ANN401 - as above
    queue = cygrpc.CompletionQueue()
    server = cygrpc.Server((("grpc.so_reuseport", 0),), False)  # noqa: FBT003 - without xDS
    server.register_completion_queue(queue)
    server.start()
    requested, stopped = object(), object()
    server.request_call(queue, queue, requested)
    _expect(queue.poll(0.0).completion_type, cygrpc.CompletionType.queue_timeout)
    server.shutdown(queue, stopped)
    _expect({_next(queue).tag, _next(queue).tag}, {requested, stopped})
    server.destroy()
    queue.shutdown()
    _expect(_next(queue).completion_type, cygrpc.CompletionType.queue_shutdown)


def _next(queue: Any) -> Any:  # noqa: ANN401 - as above
    return queue.poll(time.time() + _SECONDS_MAX)


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise TypeError(f"{found!r} came in place of {expected!r}")
