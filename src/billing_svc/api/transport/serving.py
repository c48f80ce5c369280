"""A gRPC server whose handlers run on the event loop: what its two implementations share (ADR 0017)."""

import abc
import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc
import structlog

from billing_svc.api.transport import calls, connections

_log = structlog.get_logger("rpc")

# The time that the core leaves its calls when `stop` shuts it down.
_LAST_SECONDS = 1.0

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Takes the request and the call that `Routing.begin` returned. The request is an awaitable of bytes or None; of a
# method that streams requests, an iterator of bytes; None if the request is not read. Returns the response; None if the
# handler has written a stream.
Handler: TypeAlias = Callable[[Any, Any], Awaitable[Any]]

# The details of the status that a call of an unknown method gets.
NO_SUCH_METHOD = "there is no such method"


class CannotListen(Exception):
    """Another server uses the address, or this machine does not have it."""


@dataclass(frozen=True, slots=True)
class Route:
    """How the calls of one method are answered."""

    method: str
    run: Handler
    # Answers a call that `Routing.admits` does not admit, without its request.
    refuse: Handler
    serialize: calls.Serializer
    streams_requests: bool = False
    streams_responses: bool = False


class Routing(Protocol):
    """The layers between the transport and the handlers: access, limits, errors, logs."""

    def route(self, method: str, handler: MethodHandler) -> Route:
        """Return how a method is answered; called once for each method, before the server starts."""

    def begin(self, wire: calls.Wire, metadata: calls.Metadata, serialize: calls.Serializer) -> calls.Call:
        """Return the object of a call that has just arrived."""

    def admits(self, method: str, call: Any) -> bool:  # noqa: ANN401 - what `begin` returned
        """Say whether a call's request is to be read; otherwise the route's `refuse` answers it."""

    def ended(self, method: str, call: Any) -> None:  # noqa: ANN401 - as above
        """Record how a call ended: it was answered or refused, or its caller has left."""


class Server(abc.ABC):
    """Listens on one port, and answers each call by its method's route."""

    def __init__(self, routing: Routing, options: Sequence[tuple[str, int]] = ()) -> None:
        self._routing = routing
        self._options = tuple(options)
        self._routes: dict[str, Route] = {}
        # Also keeps the calls' tasks alive: asyncio has only weak references to tasks.
        self._under_way: set[calls.Call] = set()
        self._port = 0
        self._has_started = False
        self._stopping: asyncio.Task[None] | None = None

    def add(self, register: Callable[..., None], servicer: object) -> None:
        """Answer a service's methods; `register` is the generated function `add_...Servicer_to_server`."""
        register(servicer, self)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, MethodHandler]) -> None:
        """Store the routes of a service's methods; the generated code calls this."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._routes[method] = self._routing.route(method, handler)

    def add_generic_rpc_handlers(self, _handlers: object) -> None:  # noqa: B027 - on purpose
        """Do nothing: the generated code calls both this and `add_registered_method_handlers`."""

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on an address and return the port. Raises CannotListen."""
        self._port = self._bind(address, credentials)
        if self._port == 0:
            raise CannotListen(address)
        return self._port

    async def start(self) -> None:
        """Begin to accept calls."""
        await self._start()
        self._has_started = True

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new connections, answer the calls on open connections until all have closed, then end (ADR 0015).

        A connection closes when its age reaches `grpc.max_connection_age_ms`: the core announces this to the client,
        waits for the client's reply and answers calls meanwhile. A shutdown of the core is less gentle: it ends with
        CANCELLED each call that the core has not passed on yet, and each call that the client sends before it has read
        of the shutdown (grpc/grpc#41785). So the core is shut down when no connection is left, or after
        `grace_seconds`.

        A stop goes on when its caller is cancelled; a second call waits for the same stop.
        """
        if not self._has_started:
            return
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(grace_seconds))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_seconds: float) -> None:
        await connections.refuse_new(self._port)
        if not await connections.gone(self._port, grace_seconds):
            _log.warning(
                "stop_cut_short",
                connections=connections.count(self._port),
                calls=len(self._under_way),
                after=grace_seconds,
            )
        await self._shut_down(min(grace_seconds, _LAST_SECONDS))

    @abc.abstractmethod
    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listen on an address and return the port, or 0."""

    @abc.abstractmethod
    async def _start(self) -> None:
        """Start the core."""

    @abc.abstractmethod
    async def _shut_down(self, seconds_max: float) -> None:
        """End the core, and cancel the calls that are unfinished after `seconds_max`; return when all have ended."""

    def _admitted(self, route: Route, call: calls.Call) -> tuple[Handler, Any]:
        """Return the handler that answers a call, and the handler's request."""
        if not self._routing.admits(route.method, call):
            return route.refuse, None
        # The request has mostly arrived when the task starts. If not, the layers bound how long the task waits, and how
        # many tasks wait.
        return route.run, call.messages() if route.streams_requests else call.receive()

    async def _answer(self, handler: Handler, request: Any, call: calls.Call) -> None:  # noqa: ANN401 - as handlers take it
        """Answer a call by a handler; an exception that the handler raises becomes a status."""
        try:
            try:
                response = await handler(request, call)
                call.answer(response)
            except grpc.aio.AbortError:
                call.refuse_as_told()
        except asyncio.CancelledError:
            call.refuse(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except Exception:  # noqa: BLE001 - a defect in the layers, or an answer that cannot be sent
            _log.exception("call_failed")
            call.set_trailing_metadata(())
            call.refuse(grpc.StatusCode.INTERNAL, "internal error")
        finally:
            call.task = None
            self._under_way.discard(call)
