"""One call's side of gRPC's core: batches of operations, begun here and completed in the queue."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

from billing_svc.api.transport import calls

T = TypeVar("T")

_NO_FLAGS = 0
_OK: int = grpc.StatusCode.OK.value[0]
# It holds nothing, so one serves every call.
_INITIAL_METADATA = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)


def _tell(waiting: "asyncio.Future[T]", result: T) -> None:
    if not waiting.done():  # it was cancelled
        waiting.set_result(result)


class CoreWire:
    """See `calls.Wire`."""

    __slots__ = ("_core", "_has_begun")

    def __init__(self, core: Any) -> None:  # noqa: ANN401 - Cython's
        self._core = core
        self._has_begun = False

    def watch(self, gone: Callable[[], None]) -> None:
        """Have `gone` called when the caller goes before it was answered."""
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), lambda _event: gone())

    def receive(self) -> "asyncio.Future[bytes | None]":
        """Ask for the next message at once."""
        coming: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._core.start_server_batch(
            (cygrpc.ReceiveMessageOperation(_NO_FLAGS),),
            lambda event: _tell(coming, event.batch_operations[0].message()),
        )
        return coming

    async def write(self, message: bytes) -> None:
        """Wait until the core has taken it."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begin((cygrpc.SendMessageOperation(message, _NO_FLAGS),), lambda _event: _tell(sent, None))
        await sent

    def answer(self, message: bytes | None, trailing: calls.Metadata) -> None:
        """Begin to send at once."""
        status = cygrpc.SendStatusFromServerOperation(trailing, _OK, b"", _NO_FLAGS)
        if message is None:
            self._begin((status,), None)
        else:
            self._begin((cygrpc.SendMessageOperation(message, _NO_FLAGS), status), None)

    def refuse(self, code: grpc.StatusCode, details: str, trailing: calls.Metadata) -> None:
        """Begin to send at once."""
        number: int = code.value[0]
        self._begin((cygrpc.SendStatusFromServerOperation(trailing, number, details.encode(), _NO_FLAGS),), None)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Ask the core."""
        found = cygrpc.auth_context(self._core) or {}
        return {key.decode(): values for key, values in found.items()}

    def _begin(self, operations: tuple[Any, ...], done: Callable[[Any], object] | None) -> None:
        if not self._has_begun:
            operations = (_INITIAL_METADATA, *operations)
        self._core.start_server_batch(operations, done)
        self._has_begun = True  # not before: what cannot be sent raises
