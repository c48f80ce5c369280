"""A call as its handler uses it, the same on both transports."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Never, Protocol, TypeAlias

import grpc

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Serializer: TypeAlias = Callable[[Any], bytes]


class Wire(Protocol):
    """Receives and sends the messages of one call; each transport implements it."""

    def receive(self) -> Awaitable[bytes | None]:
        """Return an awaitable of the next message; of None after the last message."""

    async def write(self, message: bytes) -> None:
        """Send a message of a stream, and wait until the core has accepted it."""

    def answer(self, message: bytes | None, trailing: Metadata) -> None:
        """Send the response (None at the end of a stream) and the status OK. Raises if they cannot be sent."""

    def refuse(self, code: grpc.StatusCode, details: str, trailing: Metadata) -> None:
        """Send a status without a response. Raises if it cannot be sent."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties of the caller."""


class Call:
    """A call in progress, with those methods of `grpc.aio.ServicerContext` that the layers and servicers use."""

    __slots__ = ("_serialize", "_told", "_trailing", "_wire", "code", "is_over", "metadata", "task")

    def __init__(self, wire: Wire, metadata: Metadata, serialize: Serializer) -> None:
        self._wire = wire
        self.metadata = metadata
        self._serialize = serialize
        # The task that answers the call; None before it starts and after it ends.
        self.task: asyncio.Task[Any] | None = None
        # The call was answered or refused, or its caller has left: nothing more can be sent.
        self.is_over = False
        # The status that was sent; CANCELLED if none was, as when the caller has left.
        self.code = grpc.StatusCode.CANCELLED
        self._trailing: Metadata = ()
        # The status and the details that `refuse_as_told` sends.
        self._told = grpc.StatusCode.UNKNOWN, ""

    def receive(self) -> Awaitable[bytes | None]:
        """Return an awaitable of the next message; of None after the last message."""
        return self._wire.receive()

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the messages of the caller's stream."""
        while (message := await self.receive()) is not None:
            yield message

    async def write(self, response: Any) -> None:  # noqa: ANN401 - any message
        """Send a message of a stream, and wait until the core has accepted it."""
        await self._wire.write(self._serialize(response))

    def answer(self, response: Any) -> None:  # noqa: ANN401 - any message, or None after a stream
        """Send the response and the status OK; do nothing if the call is over."""
        if not self.is_over:
            self._wire.answer(None if response is None else self._serialize(response), self._trailing)
            self.is_over, self.code = True, grpc.StatusCode.OK

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Send a status without a response; do nothing if the call is over."""
        if not self.is_over:
            self._wire.refuse(code, details, self._trailing)
            self.is_over, self.code = True, code

    def refuse_as_told(self) -> None:
        """Send the status that was given to `abort` or `set_code`."""
        self.refuse(*self._told)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> Never:
        """End the call with a status. Always raises AbortError; a handler must not catch it."""
        self._told, self._trailing = (code, details), trailing_metadata or self._trailing
        raise grpc.aio.AbortError

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status of a refusal; only the generated stubs of unimplemented methods call this."""
        self._told = code, self._told[1]

    def set_details(self, details: str) -> None:
        """Set the details of a refusal."""
        self._told = self._told[0], details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Set the metadata that is sent with the status."""
        self._trailing = metadata

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties of the caller."""
        return self._wire.auth_context()

    def gone(self) -> None:
        """Cancel the task, because the caller has left or its deadline has passed."""
        if not self.is_over:
            self.is_over = True
            # In the loop's next turn: a task cancelled before its first step never runs, not even its `finally`.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
