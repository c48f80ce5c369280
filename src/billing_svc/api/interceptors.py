"""The layers that every RPC passes through; `routing` in `programs/server.py` has their order, with reasons.

A layer is a function that takes a method's name and the inner handler, and returns the outer handler. Layers are
composed once for each method, not for each call.
"""

import asyncio
import inspect
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf import message

from billing_svc.api import access, scope, statuses, tls
from billing_svc.api.transport import calls, serving
from billing_svc.platform import deadlines, errors
from billing_svc.platform.monitoring import metrics

# The type of a servicer's context in the generated code. In quotes: only the type checker accepts its parameters.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MethodHandler: TypeAlias = serving.MethodHandler
Handler: TypeAlias = serving.Handler
Layer: TypeAlias = Callable[[str, Handler], Handler]

REQUEST_ID_KEY = "x-request-id"
REQUEST_ID_LENGTH_MAX = 128
# Longer than any transaction's budget, so that only calls that hang are cancelled.
SERVER_DEADLINE_SECONDS = 15.0
# Streams: reflection, and watches of the service's health by load balancers and supervisors, which need no token.
STREAMS_AT_ONCE = 100
# Calls without a token (health checks) under way at once: a stranger may send megabytes, or never finish a request.
OPEN_CALLS_AT_ONCE = 100

_log = structlog.get_logger("rpc")

# The beginning of the request ids that this process makes. They must be unique, but need not be secret.
_PROCESS = secrets.token_hex(8)
_numbers = itertools.count()


class CallState(calls.Call):
    """A call under way, with its caller and the values for its log line."""

    __slots__ = ("account_id", "caller", "headers", "reason", "refusal", "request_id", "started")

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - the base class's arguments
        super().__init__(*arguments)
        self.started = time.perf_counter()
        # The first value of each name.
        self.headers: Mapping[str, str | bytes] = dict(reversed(self.metadata))
        # The id that the caller sent, if it is valid; otherwise a new id.
        self.request_id = _request_id(self.headers.get(REQUEST_ID_KEY))
        self.set_trailing_metadata(((REQUEST_ID_KEY, self.request_id),))
        self.caller = access.ANONYMOUS
        # Set if the call is refused before its request is read.
        self.refusal: errors.BillingError | None = None
        # The account and the reason of the call's end, for the log.
        self.account_id = ""
        self.reason = ""

    def end_overdue(self) -> None:
        """Cancel the call, because its deadline has passed."""
        if self.task is not None:
            self.task.cancel()


def call_of(context: Context) -> CallState:
    """Return a servicer's context as the `CallState` that it is; the generated code does not know that type."""
    return cast("CallState", context)


class Interceptors:
    """Runs every handler inside the layers, counts each call and writes its log line. Is the `Routing` of a server."""

    def __init__(
        self,
        layers: Sequence[Layer],
        open_layers: Sequence[Layer],
        stream_layers: Sequence[Layer],
        tokens: access.Tokens,
        counted: metrics.Calls,
    ) -> None:
        """Layers are given the outermost first: for unary RPCs, for open RPCs (no token), and for streams."""
        self._layers = layers
        self._open_layers = open_layers
        self._stream_layers = stream_layers
        self._tokens = tokens
        self._counted = counted
        self._counts: dict[str, Callable[[str, str, float], None]] = {}

    def begin(self, wire: calls.Wire, metadata: calls.Metadata, serialize: calls.Serializer) -> CallState:
        """Return the state of a new call."""
        return CallState(wire, metadata, serialize)

    def route(self, method: str, handler: MethodHandler) -> serving.Route:
        """Return a method's route: its handler inside the layers, and its refusal."""
        self._counts[method] = self._counted.of(method)
        # Only the standard services have streams (health, reflection).
        if handler.response_streaming:
            run = _within(self._stream_layers, method, _parse_and_stream(handler))
        else:
            # Requests are parsed inside the layers, so that a malformed request gets our error message.
            is_open = access.ENTRIES.get(method) is access.Open.ANYONE
            run = _within(self._open_layers if is_open else self._layers, method, _parse(method, handler))
        serialize: Any = handler.response_serializer
        refuse = _within(self._layers, method, _refuse)
        return serving.Route(
            method,
            run,
            refuse,
            serialize,
            streams_requests=handler.request_streaming,
            streams_responses=handler.response_streaming,
        )

    def admits(self, method: str, call: calls.Call) -> bool:
        """Authenticate and authorize the caller; returns False if the call is refused.

        Runs before the request is read, so that a stranger's large or endless request uses no memory.
        """
        call = cast("CallState", call)
        sent = call.headers.get("authorization")
        authorization = sent if isinstance(sent, str) else None
        shown: Sequence[str] = ()
        if authorization is None and self._tokens.know_certificates:
            shown = tuple(tls.names(call.auth_context()))
        try:
            call.caller = access.authorize(method, authorization, self._tokens, shown)
        except errors.BillingError as error:
            call.refusal = error
            return False
        return True

    def ended(self, method: str, call: calls.Call) -> None:
        """Count a call and log it."""
        call = cast("CallState", call)
        seconds = time.perf_counter() - call.started
        self._counts[method](call.code.name, call.reason, seconds)
        _log.info(
            "call",
            method=method,
            code=call.code.name,
            reason=call.reason,
            caller=call.caller.name,
            account=call.account_id,
            request_id=call.request_id,
            ms=round(seconds * 1000, 2),
        )


def _within(layers: Sequence[Layer], method: str, run: Handler) -> Handler:
    for layer in reversed(layers):
        run = layer(method, run)
    return run


async def _refuse(_request: object, call: CallState) -> None:
    raise call.refusal or errors.Unauthenticated("the caller is not known")


def map_errors(method: str, inner: Handler) -> Handler:
    """Turn an exception of a handler into a status with details. The text of a defect never reaches a caller."""

    async def run(request: Any, call: CallState) -> Any:  # noqa: ANN401 - any message
        try:
            return await inner(request, call)
        except grpc.aio.AbortError:  # a status already; must not be caught as an Exception below
            raise
        except errors.NotAvailableYet as error:
            await _abort(call, errors.NotAvailableYet(error.message, {"rpc": method}))
        except errors.BillingError as error:
            await _abort(call, error)
        except NotImplementedError:  # raised by a generated servicer's method that is not implemented
            await _abort(call, errors.NotAvailableYet("this RPC is not available yet", {"rpc": method}))
        except Exception:  # noqa: BLE001 - a defect: logged in full, answered with a fixed text
            call.reason = "INTERNAL"
            _log.exception("handler failed", method=method, request_id=call.request_id)
            await call.abort(grpc.StatusCode.INTERNAL, f"internal error; request {call.request_id}")

    return run


async def _abort(call: CallState, error: errors.BillingError) -> None:
    call.reason = error.reason
    status = statuses.to_status(error)
    await call.abort(status.code, status.details, (*status.trailing_metadata, (REQUEST_ID_KEY, call.request_id)))


def limit(calls_max: int, seconds_max: float | None = None) -> Layer:
    """Return the layer that refuses calls while `calls_max` calls of all methods are under way in this process.

    It also cancels a call after `seconds_max`, also if the client set no deadline; None for streams without a limit.
    """
    under_way: deadlines.Overdue[CallState] = deadlines.Overdue(seconds_max, CallState.end_overdue)

    def layer(_method: str, inner: Handler) -> Handler:
        async def run(request: Any, call: CallState) -> Any:  # noqa: ANN401 - any message
            if len(under_way) >= calls_max:
                raise errors.Overloaded("the server has more calls under way than it can answer soon")
            under_way.begin(call)
            try:
                return await inner(request, call)
            except asyncio.CancelledError:
                if under_way.end(call):
                    raise
                raise errors.DeadlineExceeded(
                    f"not answered within {seconds_max:g} s; the outcome is unknown, repeat with the same id"
                ) from None
            finally:
                under_way.end(call)

        return run

    return layer


def _parse(method: str, handler: MethodHandler) -> Handler:
    answer: Any = handler.unary_unary
    confined = scope.confine(method, answer)

    async def run(request: Awaitable[bytes | None], call: CallState) -> Any:  # noqa: ANN401 - any message
        parsed = _message(handler, await request, call)
        call.account_id = getattr(parsed, "account_id", "")[:REQUEST_ID_LENGTH_MAX]
        if call.caller.account_prefix is not None:
            return await confined(call.caller, parsed, call)
        return await answer(parsed, call)

    return run


def _parse_and_stream(handler: MethodHandler) -> Handler:
    """Return a handler that writes its answers and returns None, so that the layers can wrap it."""
    answer: Any = handler.stream_stream or handler.unary_stream

    async def run(request: Any, call: CallState) -> None:  # noqa: ANN401 - an awaitable or a stream of bytes
        parsed = (
            _messages(handler, request, call) if handler.request_streaming else _message(handler, await request, call)
        )
        answers = answer(parsed, call)
        if inspect.isawaitable(answers):  # the servicer writes its answers itself
            await answers
            return
        async for one in answers:
            await call.write(one)

    return run


def _message(handler: MethodHandler, request: bytes | None, call: CallState) -> Any:  # noqa: ANN401 - any message
    deserialize: Any = handler.request_deserializer
    if request is None:
        if call.is_over:  # the caller has gone, or gRPC's core has refused the request because of its size
            raise asyncio.CancelledError
        raise errors.MalformedMessage("the call has no request")
    try:
        return deserialize(request)
    except message.DecodeError as error:
        raise errors.MalformedMessage("the bytes are not a message of this RPC's request type") from error


async def _messages(handler: MethodHandler, requests: AsyncIterator[bytes], call: CallState) -> AsyncIterator[Any]:
    async for request in requests:
        yield _message(handler, request, call)


def _request_id(sent: str | bytes | None) -> str:
    # Only ASCII can be sent back in trailing metadata.
    if sent and isinstance(sent, str) and len(sent) <= REQUEST_ID_LENGTH_MAX and sent.isascii() and sent.isprintable():
        return sent
    return f"{_PROCESS}{next(_numbers):016x}"
