"""A call in gRPC's core: its batches of operations begin here, and their completion comes through the queue."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

from billing_svc.api.transport import calls

T = TypeVar("T")

_NO_FLAGS = 0
_OK: int = grpc.StatusCode.OK.value[0]
# Has no content, so all calls share this object.
_INITIAL_METADATA = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)


def _tell(waiting: "asyncio.Future[T]", result: T) -> None:
    if not waiting.done():  # the future may have been cancelled
        waiting.set_result(result)


class CoreWire:
    """See `calls.Wire`."""

    __slots__ = ("_core", "_has_begun")

    def __init__(self, core: Any) -> None:  # noqa: ANN401 - Cython's
        self._core = core
        self._has_begun = False

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone` if the caller leaves before it was answered."""
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), lambda _event: gone())

    def receive(self) -> "asyncio.Future[bytes | None]":
        """Ask the core for the next message at once, and return its future."""
        coming: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._core.start_server_batch(
            (cygrpc.ReceiveMessageOperation(_NO_FLAGS),),
            lambda event: _tell(coming, event.batch_operations[0].message()),
        )
        return coming

    async def write(self, message: bytes) -> None:
        """Send a message, and wait until the core has accepted it."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begin((cygrpc.SendMessageOperation(message, _NO_FLAGS),), lambda _event: _tell(sent, None))
        await sent

    def answer(self, message: bytes | None, trailing: calls.Metadata) -> None:
        """Pass the response and the status to the core, without waiting until they are sent."""
        status = cygrpc.SendStatusFromServerOperation(trailing, _OK, b"", _NO_FLAGS)
        if message is None:
            self._begin((status,), None)
        else:
            self._begin((cygrpc.SendMessageOperation(message, _NO_FLAGS), status), None)

    def refuse(self, code: grpc.StatusCode, details: str, trailing: calls.Metadata) -> None:
        """Pass the status to the core, without waiting until it is sent."""
        number: int = code.value[0]
        self._begin((cygrpc.SendStatusFromServerOperation(trailing, number, details.encode(), _NO_FLAGS),), None)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties that the core has of the caller."""
        found = cygrpc.auth_context(self._core) or {}
        return {key.decode(): values for key, values in found.items()}

    def _begin(self, operations: tuple[Any, ...], done: Callable[[Any], object] | None) -> None:
        if not self._has_begun:
            operations = (_INITIAL_METADATA, *operations)
        self._core.start_server_batch(operations, done)
        self._has_begun = True  # not before: the call above raises if it cannot send
