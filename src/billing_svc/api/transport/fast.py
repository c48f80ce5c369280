"""The server on gRPC's completion queue; see `serving.Server`."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

from billing_svc.api.transport import calls, fast_events, fast_wire, serving

# How many calls the core may pass on in one turn of the loop; further calls wait in the core for the next turn.
_REQUESTED = 64


class FastServer(serving.Server):
    """Takes many calls from the core in one turn of the event loop."""

    def __init__(self, routing: serving.Routing, options: Sequence[tuple[str, int]] = ()) -> None:
        super().__init__(routing, options)
        self._core = cygrpc.Server(self._options, False)  # noqa: FBT003 - without xDS
        # None until the server starts.
        self._events: fast_events.Events | None = None
        # Routes by path. Bytes, because a caller's path need not be valid UTF-8.
        self._paths: dict[bytes, serving.Route] = {}
        # The core accepts no `request_call` after its shutdown.
        self._is_shut = False

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        secret = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]  # noqa: SLF001
        port: int = self._core.add_http2_port(address.encode(), *secret)
        return port

    async def _start(self) -> None:
        self._paths = {method.encode(): route for method, route in self._routes.items()}
        self._events = fast_events.Events()
        self._core.register_completion_queue(self._events.queue)
        self._core.start()
        for _ in range(_REQUESTED):
            self._request_call()

    async def _shut_down(self, seconds_max: float) -> None:
        taken_up = self._taken_up
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_shut = True
        self._core.shutdown(taken_up.queue, lambda _event: stopped.set_result(None))
        done, _ = await asyncio.wait({stopped}, timeout=seconds_max)
        if not done:
            self._core.cancel_all_calls()
            await stopped
        ending = [call.task for call in self._under_way if call.task is not None]
        if ending:
            await asyncio.wait(ending)
        await taken_up.end()
        self._core.destroy()

    @property
    def _taken_up(self) -> fast_events.Events:
        assert self._events is not None  # noqa: S101 - it has started
        return self._events

    def _request_call(self) -> None:
        queue = self._taken_up.queue
        self._core.request_call(queue, queue, self._take_up)

    def _take_up(self, event: Any) -> None:  # noqa: ANN401 - Cython's
        if not event.success:  # the core shuts down
            return
        if not self._is_shut:
            self._request_call()
        route = self._paths.get(event.call_details.method)
        core = fast_wire.CoreWire(event.call)
        if route is None:
            unknown = calls.Call(core, (), bytes)
            core.watch(unknown.gone)
            unknown.refuse(grpc.StatusCode.UNIMPLEMENTED, serving.NO_SUCH_METHOD)
            return
        call = self._routing.begin(core, event.invocation_metadata, route.serialize)
        core.watch(call.gone)
        handler, request = self._admitted(route, call)
        self._under_way.add(call)
        call.task = asyncio.get_running_loop().create_task(self._answer_and_note(route.method, handler, request, call))

    async def _answer_and_note(self, method: str, handler: serving.Handler, request: Any, call: calls.Call) -> None:  # noqa: ANN401 - as handlers take it
        try:
            await self._answer(handler, request, call)
        finally:
            # Runs after the answer was sent, so that no caller waits for the log line.
            self._routing.ended(method, call)
