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

# What a stop that has reached its bound still gives the calls under way.
_LAST_SECONDS = 1.0

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Takes the request (bytes to be awaited, or None; where it streams, an iterator of bytes; None where it is not to be
# read) and the call as the routing began it, and returns the response, or None after a stream of its own.
Handler: TypeAlias = Callable[[Any, Any], Awaitable[Any]]

# What callers of any other method are told.
NO_SUCH_METHOD = "there is no such method"


class CannotListen(Exception):
    """Another server is on the address, or it is none of this machine's."""


@dataclass(frozen=True, slots=True)
class Route:
    """How the calls of one method are answered."""

    method: str
    run: Handler
    # Answers those whose request is not even read.
    refuse: Handler
    serialize: calls.Serializer
    streams_requests: bool = False
    streams_responses: bool = False


class Routing(Protocol):
    """What stands between the calls and the handlers."""

    def route(self, method: str, handler: MethodHandler) -> Route:
        """Return how a method is answered; called once for each, before the server starts."""

    def begin(self, wire: calls.Wire, metadata: calls.Metadata, serialize: calls.Serializer) -> calls.Call:
        """Return a call that has just come."""

    def admits(self, method: str, call: Any) -> bool:  # noqa: ANN401 - what `begin` returned
        """Say whether a call's request is to be read; otherwise the route's `refuse` answers it."""

    def ended(self, method: str, call: Any) -> None:  # noqa: ANN401 - as above
        """Note how a call ended: it was answered or refused, or its caller has gone."""


class Server(abc.ABC):
    """Listens on one port, and answers each call by its method's route."""

    def __init__(self, routing: Routing, options: Sequence[tuple[str, int]] = ()) -> None:
        self._routing = routing
        self._options = tuple(options)
        self._routes: dict[str, Route] = {}
        # asyncio itself keeps only weak references to their tasks.
        self._under_way: set[calls.Call] = set()
        self._port = 0
        self._has_started = False
        self._stopping: asyncio.Task[None] | None = None

    def add(self, register: Callable[..., None], servicer: object) -> None:
        """Answer a service's methods; `register` is what was generated as `add_...Servicer_to_server`."""
        register(servicer, self)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, MethodHandler]) -> None:
        """Take over a service's methods; generated code calls it."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._routes[method] = self._routing.route(method, handler)

    def add_generic_rpc_handlers(self, _handlers: object) -> None:  # noqa: B027 - on purpose
        """Do nothing: generated code registers each service in both ways."""

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on an address and return the port. Raises CannotListen."""
        self._port = self._bind(address, credentials)
        if self._port == 0:
            raise CannotListen(address)
        return self._port

    async def start(self) -> None:
        """Take calls up from now on."""
        await self._start()
        self._has_started = True

    async def stop(self, grace_seconds: float) -> None:
        """Take no new connection, answer what comes on the open ones until all have gone, then end (ADR 0015).

        A connection goes when it reaches `grpc.max_connection_age_ms`: the core then tells the client in two steps with
        a round trip between them, and serves meanwhile. The core's own shutdown ends with CANCELLED each call that it
        has not handed over, or that crosses its message (grpc/grpc#41785). So it comes when no connection is left, and
        after `grace_seconds` all the same.

        Once begun it goes on, also without the one who asked; who asks again waits for the same.
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
        """Let the core begin."""

    @abc.abstractmethod
    async def _shut_down(self, seconds_max: float) -> None:
        """End the core, and after `seconds_max` whatever call is still under way; return when nothing is left."""

    def _admitted(self, route: Route, call: calls.Call) -> tuple[Handler, Any]:
        """Return what answers a call, and the request that it takes."""
        if not self._routing.admits(route.method, call):
            return route.refuse, None
        # Mostly there when the task begins. While it is not, the layers bound how long and for how many that lasts.
        return route.run, call.messages() if route.streams_requests else call.receive()

    async def _answer(self, handler: Handler, request: Any, call: calls.Call) -> None:  # noqa: ANN401 - as handlers take it
        """Let a handler answer a call that is under way; whatever it raises ends in a status."""
        try:
            try:
                response = await handler(request, call)
                call.answer(response)
            except grpc.aio.AbortError:
                call.refuse_as_told()
        except asyncio.CancelledError:
            call.refuse(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except Exception:  # noqa: BLE001 - the layers have let through what they should not, or it cannot be sent
            _log.exception("call_failed")
            call.set_trailing_metadata(())
            call.refuse(grpc.StatusCode.INTERNAL, "internal error")
        finally:
            call.task = None
            self._under_way.discard(call)
