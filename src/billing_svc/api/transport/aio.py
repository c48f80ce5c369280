"""The server on `grpc.aio`, gRPC's public interface (ADR 0017); see `serving.Server`.

Every method is registered as a method that streams its requests: `grpc.aio` then runs the handler before it reads the
request, so a caller without access is refused unread. Each exception becomes a status before it can reach `grpc.aio`,
which would send the exception's text to the caller.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
import structlog

from billing_svc.api.transport import calls, connections, serving

_log = structlog.get_logger("rpc")

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# How often the transport checks that the port still has a listening socket. A check of sixty sockets takes 0.3 ms.
_LOOK_SECONDS = 0.2
# The time in which a replaced server may finish its calls: more than the longest call may take.
_LEFT_SECONDS = 20.0


class AioServer(serving.Server):
    """Runs each call in the task that `grpc.aio` starts for it."""

    def __init__(self, routing: serving.Routing, options: Sequence[tuple[str, int]] = ()) -> None:
        super().__init__(routing, options)
        self._core = grpc.aio.server(options=self._options)
        self._bind_to: Callable[[grpc.aio.Server], int] = lambda _core: 0
        self._keeping: asyncio.Task[None] | None = None
        # Servers that grpc.aio has ended and that still answer calls, each with the task that stops it.
        self._ended: dict[grpc.aio.Server, asyncio.Task[None]] = {}

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        port = _bound(self._core, address, credentials)
        host = address.rpartition(":")[0]
        self._bind_to = lambda core: _bound(core, f"{host}:{port}", credentials)
        return port

    async def _start(self) -> None:
        await self._begin(self._core)
        # `connections` sees TCP ports only: a server on a Unix socket is not replaced.
        if connections.is_listened_on(self._port):
            self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def _begin(self, core: grpc.aio.Server) -> None:
        handlers = {method: self._handler(route) for method, route in self._routes.items()}
        core.add_generic_rpc_handlers((_Methods(handlers),))
        await core.start()

    async def _keep(self) -> None:
        """Replace the server when `grpc.aio` has ended it, as it does after a call whose path is not UTF-8.

        The ended server still answers the calls that it has accepted, but accepts no new connection.
        """
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if connections.is_listened_on(self._port):
                continue
            _log.error("server_replaced", port=self._port)
            core = grpc.aio.server(options=self._options)
            if self._bind_to(core):
                ended, self._core = self._core, core
                await self._begin(core)
                self._ended[ended] = asyncio.get_running_loop().create_task(self._end(ended))

    async def _end(self, core: grpc.aio.Server) -> None:
        await core.stop(_LEFT_SECONDS)
        del self._ended[core]

    async def _stop(self, grace_seconds: float) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        await super()._stop(grace_seconds)

    async def _shut_down(self, seconds_max: float) -> None:
        await asyncio.gather(*(core.stop(seconds_max) for core in (self._core, *self._ended)))
        ending = {call.task for call in self._under_way if call.task is not None}
        if ending:
            await asyncio.wait(ending)

    def _handler(self, route: serving.Route) -> serving.MethodHandler:
        async def admit(_request: object, call: calls.Call) -> Any:  # noqa: ANN401 - any message
            handler, request = self._admitted(route, call)
            return await handler(request, call)

        async def run(_requests: object, context: _Context) -> bytes | None:
            wire = ContextWire(context)
            metadata: Any = context.invocation_metadata()
            call = self._routing.begin(wire, metadata, route.serialize)
            call.task = asyncio.current_task()
            self._under_way.add(call)
            await self._answer(admit, None, call)
            # Runs after this task's next step has sent the answer, so that no caller waits for the log line.
            asyncio.get_running_loop().call_soon(self._routing.ended, route.method, call)
            return await wire.end()

        return _streaming(run, answers=route.streams_responses)


class ContextWire:
    """See `calls.Wire`. Keeps the response or status until the handler returns: `grpc.aio` sends it only then."""

    __slots__ = ("_context", "_has_received", "_message", "_refusal")

    def __init__(self, context: _Context) -> None:
        self._context = context
        self._has_received = False
        self._message: bytes | None = None
        self._refusal: tuple[grpc.StatusCode, str] | None = None

    def receive(self) -> Awaitable[bytes | None]:
        """Return the next message; `grpc.aio` is asked for it only when the result is awaited."""
        return _NextMessage(self)

    async def next(self) -> bytes | None:
        """Return the next message; None after the last. Raises CancelledError if the caller left before the first."""
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._has_received = True
            return message  # type: ignore[no-any-return]  # unparsed, so bytes
        if not self._has_received:
            # EOF means that the caller either sent no message or has left; if it has left, sending metadata fails.
            with _cancelled_if_caller_left():
                await self._context.send_initial_metadata(())
        return None

    async def write(self, message: bytes) -> None:
        """Send a message, and wait until the core has accepted it."""
        with _cancelled_if_caller_left():
            await self._context.write(message)

    def answer(self, message: bytes | None, trailing: calls.Metadata) -> None:
        """Keep the response for `end`."""
        self._context.set_trailing_metadata(_fit(trailing))
        self._message = message

    def refuse(self, code: grpc.StatusCode, details: str, trailing: calls.Metadata) -> None:
        """Keep the status for `end`."""
        self._context.set_trailing_metadata(_fit(trailing))
        details.encode()  # raises now if it cannot be sent; in `end` the error would leave the caller without a status
        self._refusal = code, details

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties that the core has of the caller."""
        return self._context.auth_context()

    async def end(self) -> bytes | None:
        """Send the status, or return the message that `grpc.aio` sends with OK."""
        if self._refusal is not None:
            with _cancelled_if_caller_left():
                await self._context.abort(*self._refusal)
        return self._message


class _NextMessage:
    """The next message of a call, not read before it is awaited; a coroutine that is never awaited would warn."""

    __slots__ = ("_wire",)

    def __init__(self, wire: ContextWire) -> None:
        self._wire = wire

    def __await__(self) -> Generator[Any, None, bytes | None]:
        return self._wire.next().__await__()


@contextlib.contextmanager
def _cancelled_if_caller_left() -> Iterator[None]:
    """Raise CancelledError when a send fails: the caller has left, and `grpc.aio` is about to cancel the handler."""
    try:
        yield
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


class _Methods(grpc.GenericRpcHandler):
    """Gives each method its handler, and refuses a call of an unknown method."""

    def __init__(self, handlers: Mapping[str, serving.MethodHandler]) -> None:
        self._handlers = handlers
        self._unknown = _streaming(_refuse_unknown, answers=False)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> serving.MethodHandler:
        return self._handlers.get(handler_call_details.method, self._unknown)


async def _refuse_unknown(_requests: object, context: _Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, serving.NO_SUCH_METHOD)


def _streaming(run: Callable[..., Awaitable[bytes | None]], *, answers: bool) -> serving.MethodHandler:
    made: Any = grpc.stream_stream_rpc_method_handler if answers else grpc.stream_unary_rpc_method_handler
    handler: serving.MethodHandler = made(run)
    return handler


def _bound(core: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return core.add_insecure_port(address)
        return core.add_secure_port(address, credentials)
    except RuntimeError:
        return 0


def _fit(trailing: calls.Metadata) -> calls.Metadata:
    """Return the metadata. Raises TypeError on values that `grpc.aio` cannot send: it would then send no status."""
    if not all(isinstance(part, str | bytes) for pair in trailing for part in pair):
        raise TypeError("trailing metadata is neither text nor bytes")
    return trailing
