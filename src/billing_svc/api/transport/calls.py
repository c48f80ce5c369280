"""One call: what its handler sees of it, and its ways to an answer, whichever transport it came by."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Never, Protocol, TypeAlias

import grpc

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Serializer: TypeAlias = Callable[[Any], bytes]


class Wire(Protocol):
    """A transport's side of one call."""

    def receive(self) -> Awaitable[bytes | None]:
        """Return the next message, to be awaited; None after the last one."""

    async def write(self, message: bytes) -> None:
        """Send one message of a stream, and wait until it is out."""

    def answer(self, message: bytes | None, trailing: Metadata) -> None:
        """End the call with OK, after a message or, at a stream's end, without. Raises on what cannot be sent."""

    def refuse(self, code: grpc.StatusCode, details: str, trailing: Metadata) -> None:
        """End the call with a status in place of an answer. Raises on what cannot be sent."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS knows of the caller."""


class Call:
    """A call under way; what of `grpc.aio.ServicerContext` the layers and servicers use."""

    __slots__ = ("_serialize", "_told", "_trailing", "_wire", "code", "is_over", "metadata", "task")

    def __init__(self, wire: Wire, metadata: Metadata, serialize: Serializer) -> None:
        self._wire = wire
        self.metadata = metadata
        self._serialize = serialize
        # What answers it, once something does.
        self.task: asyncio.Task[Any] | None = None
        # It was answered, or its caller has gone: nothing can be sent any more.
        self.is_over = False
        # How it ended; until it does, as if its caller had gone.
        self.code = grpc.StatusCode.CANCELLED
        self._trailing: Metadata = ()
        # The status that is meant, and why.
        self._told = grpc.StatusCode.UNKNOWN, ""

    def receive(self) -> Awaitable[bytes | None]:
        """Return the next message, to be awaited; None after the last one."""
        return self._wire.receive()

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the messages of a stream."""
        while (message := await self.receive()) is not None:
            yield message

    async def write(self, response: Any) -> None:  # noqa: ANN401 - any message
        """Send one message of a stream, and wait until it is out."""
        await self._wire.write(self._serialize(response))

    def answer(self, response: Any) -> None:  # noqa: ANN401 - any message, or None after a stream
        """Send the response and the end of the call."""
        if not self.is_over:
            self._wire.answer(None if response is None else self._serialize(response), self._trailing)
            self.is_over, self.code = True, grpc.StatusCode.OK

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Send a status in place of an answer."""
        if not self.is_over:
            self._wire.refuse(code, details, self._trailing)
            self.is_over, self.code = True, code

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

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS knows of the caller."""
        return self._wire.auth_context()

    def gone(self) -> None:
        """Stop working for a caller that has gone, or whose deadline has passed."""
        if not self.is_over:
            self.is_over = True
            # Not at once: a task that is cancelled before its first step never takes it, and would not tidy up.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
