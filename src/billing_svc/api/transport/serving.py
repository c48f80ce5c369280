"""A gRPC server whose handlers run on the event loop; it does what of `grpc.aio.Server` is used here."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

from billing_svc.api.transport import calls, connections, events

_log = structlog.get_logger("rpc")

# Calls that the core may hand over at once; what comes beyond waits in it for the next turn of the loop.
_REQUESTED = 64
# What a stop that has reached its bound still gives the calls under way.
_LAST_SECONDS = 1.0

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Takes the request (bytes to be awaited, or None; where it streams, an iterator of bytes; None where it is not to be
# read) and the call as the routing began it, and returns the response, or None after a stream of its own.
Handler: TypeAlias = Callable[[Any, Any], Awaitable[Any]]


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


class Routing(Protocol):
    """What stands between the calls and the handlers."""

    def route(self, method: str, handler: MethodHandler) -> Route:
        """Return how a method is answered; called once for each, before the server starts."""

    def begin(self, core: Any, metadata: calls.Metadata, serialize: calls.Serializer) -> calls.Call:  # noqa: ANN401
        """Return a call that has just come."""

    def admits(self, method: str, call: Any) -> bool:  # noqa: ANN401 - what `begin` returned
        """Say whether a call's request is to be read; otherwise the route's `refuse` answers it."""

    def ended(self, method: str, call: Any) -> None:  # noqa: ANN401 - as above
        """Note how a call ended: it was answered or refused, or its caller has gone."""


class Server:
    """Listens on one port, and answers each call by its method's route."""

    def __init__(self, routing: Routing, options: Sequence[tuple[str, int]] = ()) -> None:
        self._routing = routing
        self._core = cygrpc.Server(tuple(options), False)  # noqa: FBT003 - without xDS
        # From the start on.
        self._events: events.Events | None = None
        # As the core names them: a path may be any bytes.
        self._routes: dict[bytes, Route] = {}
        # asyncio itself keeps only weak references to their tasks.
        self._under_way: set[calls.Call] = set()
        self._port = 0
        # The core takes no more once it was told to shut down.
        self._is_shut = False
        self._stopping: asyncio.Task[None] | None = None

    def add(self, register: Callable[..., None], servicer: object) -> None:
        """Answer a service's methods; `register` is what was generated as `add_...Servicer_to_server`."""
        register(servicer, self)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, MethodHandler]) -> None:
        """Take over a service's methods; generated code calls it."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._routes[method.encode()] = self._routing.route(method, handler)

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """Do nothing: generated code registers each service in both ways."""

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on an address and return the port. Raises CannotListen."""
        secret = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]  # noqa: SLF001
        port: int = self._core.add_http2_port(address.encode(), *secret)
        if port == 0:
            raise CannotListen(address)
        self._port = port
        return port

    def start(self) -> None:
        """Take calls up from now on."""
        self._events = events.Events()
        self._core.register_completion_queue(self._events.queue)
        self._core.start()
        for _ in range(_REQUESTED):
            self._request_call()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new connection, answer what comes on the open ones until all have gone, then end (ADR 0015).

        A connection goes when it reaches `grpc.max_connection_age_ms`: the core then tells the client in two steps with
        a round trip between them, and serves meanwhile. The core's own shutdown ends with CANCELLED each call that it
        has not handed over, or that crosses its message (grpc/grpc#41785). So it comes when no connection is left, and
        after `grace_seconds` all the same.

        Once begun it goes on, also without the one who asked; who asks again waits for the same.
        """
        if self._events is None:
            return
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(self._events, grace_seconds))
        await asyncio.shield(self._stopping)

    async def _stop(self, taken_up: events.Events, grace_seconds: float) -> None:
        await connections.refuse_new(self._port)
        if not await connections.gone(self._port, grace_seconds):
            _log.warning(
                "stop_cut_short",
                connections=connections.count(self._port),
                calls=len(self._under_way),
                after=grace_seconds,
            )
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_shut = True
        self._core.shutdown(taken_up.queue, lambda _event: stopped.set_result(None))
        done, _ = await asyncio.wait({stopped}, timeout=min(grace_seconds, _LAST_SECONDS))
        if not done:
            self._core.cancel_all_calls()
            await stopped
        ending = [call.task for call in self._under_way if call.task is not None]
        if ending:
            await asyncio.wait(ending)
        await taken_up.end()
        self._core.destroy()

    def _request_call(self) -> None:
        queue = self._events.queue  # type: ignore[union-attr]  # it has started
        self._core.request_call(queue, queue, self._take_up)

    def _take_up(self, event: Any) -> None:  # noqa: ANN401 - Cython's
        if not event.success:  # the server stops
            return
        if not self._is_shut:
            self._request_call()
        route = self._routes.get(event.call_details.method)
        if route is None:
            calls.Call(event.call, (), bytes).refuse(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
            return
        call = self._routing.begin(event.call, event.invocation_metadata, route.serialize)
        if not self._routing.admits(route.method, call):
            answering = self._answer(route.method, route.refuse, None, call)
        elif route.streams_requests:
            answering = self._answer(route.method, route.run, call.messages(), call)
        else:
            # Mostly there when the task begins. While it is not, the layers bound how long and for how many that lasts.
            answering = self._answer(route.method, route.run, call.receive(), call)
        self._under_way.add(call)
        call.task = asyncio.get_running_loop().create_task(answering)

    async def _answer(self, method: str, handler: Handler, request: Any, call: calls.Call) -> None:  # noqa: ANN401 - as handlers take it
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
            # After the answer is out: it waits for no line of a log.
            self._routing.ended(method, call)
