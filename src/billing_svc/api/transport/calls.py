"""One call: what its handler sees of it, and its ways to an answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Never, TypeAlias, TypeVar

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

T = TypeVar("T")

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Serializer: TypeAlias = Callable[[Any], bytes]

_NO_FLAGS = 0
_OK: int = grpc.StatusCode.OK.value[0]
# It holds nothing, so one serves every call.
_INITIAL_METADATA = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)


def _tell(waiting: "asyncio.Future[T]", result: T) -> None:
    if not waiting.done():  # it was cancelled
        waiting.set_result(result)


class Call:
    """A call under way; what of `grpc.aio.ServicerContext` the layers and servicers use."""

    __slots__ = ("_core", "_has_begun", "_serialize", "_told", "_trailing", "code", "is_over", "metadata", "task")

    def __init__(self, core: Any, metadata: Metadata, serialize: Serializer) -> None:  # noqa: ANN401 - Cython's
        self._core = core
        self.metadata = metadata
        self._serialize = serialize
        # What answers it, once something does.
        self.task: asyncio.Task[None] | None = None
        # It was answered, or its caller has gone: nothing can be sent any more.
        self.is_over = False
        # How it ended; until it does, as if its caller had gone.
        self.code = grpc.StatusCode.CANCELLED
        self._has_begun = False
        self._trailing: Metadata = ()
        # The status that is meant, and why.
        self._told = grpc.StatusCode.UNKNOWN, ""
        core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._gone)

    def receive(self) -> "asyncio.Future[bytes | None]":
        """Return the next message, to be awaited; None after the last one."""
        coming: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._core.start_server_batch(
            (cygrpc.ReceiveMessageOperation(_NO_FLAGS),),
            lambda event: _tell(coming, event.batch_operations[0].message()),
        )
        return coming

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the messages of a stream."""
        while (message := await self.receive()) is not None:
            yield message

    async def write(self, response: Any) -> None:  # noqa: ANN401 - any message
        """Send one message of a stream, and wait until it is out."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        message = cygrpc.SendMessageOperation(self._serialize(response), _NO_FLAGS)
        self._begin((message,), lambda _event: _tell(sent, None))
        await sent

    def answer(self, response: Any) -> None:  # noqa: ANN401 - any message, or None after a stream
        """Send the response and the end of the call."""
        status = cygrpc.SendStatusFromServerOperation(self._trailing, _OK, b"", _NO_FLAGS)
        if response is None:
            self._end(grpc.StatusCode.OK, status)
        else:
            message = cygrpc.SendMessageOperation(self._serialize(response), _NO_FLAGS)
            self._end(grpc.StatusCode.OK, message, status)

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Send a status in place of an answer."""
        number: int = code.value[0]
        self._end(code, cygrpc.SendStatusFromServerOperation(self._trailing, number, details.encode(), _NO_FLAGS))

    def refuse_as_told(self) -> None:
        """Send the status that `abort` was given."""
        self.refuse(*self._told)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> Never:
        """End the call with a status. Raises AbortError, which is to be let through."""
        self._told, self._trailing = (code, details), trailing_metadata or self._trailing
        raise grpc.aio.AbortError

    def set_code(self, code: grpc.StatusCode) -> None:
        """Say which status is meant; a generated servicer's methods call it until they are written."""
        self._told = code, self._told[1]

    def set_details(self, details: str) -> None:
        """Say why."""
        self._told = self._told[0], details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Say what goes with the answer's end."""
        self._trailing = metadata

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Return what TLS knows of the caller."""
        found = cygrpc.auth_context(self._core) or {}
        return {key.decode(): values for key, values in found.items()}

    def _end(self, code: grpc.StatusCode, *operations: Any) -> None:  # noqa: ANN401 - Cython's
        if not self.is_over:
            self._begin(operations, None)
            self.is_over, self.code = True, code

    def _begin(self, operations: tuple[Any, ...], done: Callable[[Any], object] | None) -> None:
        if not self._has_begun:
            operations = (_INITIAL_METADATA, *operations)
        self._core.start_server_batch(operations, done)
        self._has_begun = True  # not before: what cannot be sent raises

    def _gone(self, _event: object) -> None:
        """Stop working for a caller that has gone, or whose deadline has passed."""
        if not self.is_over:
            self.is_over = True
            # Not at once: a task that is cancelled before its first step never takes it, and would not tidy up.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
