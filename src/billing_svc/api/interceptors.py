"""What every RPC passes through, outermost first: see `server.routing` for the order and its reasons.

A layer is a function that takes a method's name and the handler inside it, and returns the handler around it. They are
composed once for each method, not once for each call.
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

# What servicers are handed, as generated code names its type. In quotes: it takes parameters in the type checker alone.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MethodHandler: TypeAlias = serving.MethodHandler
Handler: TypeAlias = serving.Handler
Layer: TypeAlias = Callable[[str, Handler], Handler]

REQUEST_ID_KEY = "x-request-id"
REQUEST_ID_LENGTH_MAX = 128
# Longer than any transaction's budget, so that what is cut off here hangs.
SERVER_DEADLINE_SECONDS = 15.0
# Watches of the service's health by those who balance and supervise, which need no token, and reflection.
STREAMS_AT_ONCE = 100
# The same for its checks: a stranger may send megabytes in place of one, or never finish.
OPEN_CALLS_AT_ONCE = 100

_log = structlog.get_logger("rpc")

# Of a call without an id: it need be unique, not secret, and each call has one.
_PROCESS = secrets.token_hex(8)
_numbers = itertools.count()


class CallState(calls.Call):
    """A call under way, with what is known of it."""

    __slots__ = ("account_id", "caller", "headers", "reason", "refusal", "request_id", "started")

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - as its base takes them
        super().__init__(*arguments)
        self.started = time.perf_counter()
        # The first one of each name.
        self.headers: Mapping[str, str | bytes] = dict(reversed(self.metadata))
        # The caller's own, if it sent a fit one.
        self.request_id = _request_id(self.headers.get(REQUEST_ID_KEY))
        self.set_trailing_metadata(((REQUEST_ID_KEY, self.request_id),))
        self.caller = access.ANONYMOUS
        # Why it may not even be read.
        self.refusal: errors.BillingError | None = None
        # What it is about, and why it ended as it did, for the log.
        self.account_id = ""
        self.reason = ""

    def end_overdue(self) -> None:
        """Cut it off."""
        if self.task is not None:
            self.task.cancel()


def call_of(context: Context) -> CallState:
    """Return the call that a servicer was handed, for what of it generated code does not know."""
    return cast("CallState", context)


class Interceptors:
    """Runs every handler inside the layers, counts each call and gives it its log line; the `Routing` of a server."""

    def __init__(
        self,
        layers: Sequence[Layer],
        open_layers: Sequence[Layer],
        stream_layers: Sequence[Layer],
        tokens: access.Tokens,
        counted: metrics.Calls,
    ) -> None:
        """Take the layers, outermost first, also for RPCs that anyone may call, and the callers that are known."""
        self._layers = layers
        self._open_layers = open_layers
        self._stream_layers = stream_layers
        self._tokens = tokens
        self._counted = counted
        self._counts: dict[str, Callable[[str, str, float], None]] = {}

    def begin(self, wire: calls.Wire, metadata: calls.Metadata, serialize: calls.Serializer) -> CallState:
        """Return a call that has just come."""
        return CallState(wire, metadata, serialize)

    def route(self, method: str, handler: MethodHandler) -> serving.Route:
        """Return how a method is answered."""
        self._counts[method] = self._counted.of(method)
        # Only the standard services stream (health, reflection).
        if handler.response_streaming:
            run = _within(self._stream_layers, method, _parse_and_stream(handler))
        else:
            # Parsed inside the layers, so that what does not parse is refused in our words.
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
        """Find out who calls, and say whether that is somebody who may.

        Before anything of the request is read: a stranger's megabytes, and those that never come, take nothing.
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
    raise call.refusal or errors.Unauthenticated("nobody knows who calls")


def map_errors(method: str, inner: Handler) -> Handler:
    """Turn what a handler raises into a status with details. No exception's own text reaches a caller."""

    async def run(request: Any, call: CallState) -> Any:  # noqa: ANN401 - any message
        try:
            return await inner(request, call)
        except grpc.aio.AbortError:  # already a status; it is an Exception
            raise
        except errors.NotAvailableYet as error:
            await _abort(call, errors.NotAvailableYet(error.message, {"rpc": method}))
        except errors.BillingError as error:
            await _abort(call, error)
        except NotImplementedError:  # what a generated servicer's methods raise until they are written
            await _abort(call, errors.NotAvailableYet("this RPC is not available yet", {"rpc": method}))
        except Exception:  # noqa: BLE001 - the last resort: logged in full, answered with a fixed text
            call.reason = "INTERNAL"
            _log.exception("handler failed", method=method, request_id=call.request_id)
            await call.abort(grpc.StatusCode.INTERNAL, f"internal error; request {call.request_id}")

    return run


async def _abort(call: CallState, error: errors.BillingError) -> None:
    call.reason = error.reason
    status = statuses.to_status(error)
    await call.abort(status.code, status.details, (*status.trailing_metadata, (REQUEST_ID_KEY, call.request_id)))


def limit(calls_max: int, seconds_max: float | None = None) -> Layer:
    """Return the layer that sheds calls past `calls_max` under way in this process, all methods together.

    It also bounds the time of each, whether or not the client set a deadline; None for calls that last.
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
    """Return a handler that writes its answers instead of returning them, so that the layers fit around it."""
    answer: Any = handler.stream_stream or handler.unary_stream

    async def run(request: Any, call: CallState) -> None:  # noqa: ANN401 - bytes to come, or a stream of them
        parsed = (
            _messages(handler, request, call) if handler.request_streaming else _message(handler, await request, call)
        )
        answers = answer(parsed, call)
        if inspect.isawaitable(answers):  # it writes by itself
            await answers
            return
        async for one in answers:
            await call.write(one)

    return run


def _message(handler: MethodHandler, request: bytes | None, call: CallState) -> Any:  # noqa: ANN401 - any message
    deserialize: Any = handler.request_deserializer
    if request is None:
        if call.is_over:  # its caller has gone, or it was too large for the core, which has said so by itself
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
    # What is not ASCII cannot be sent back.
    if sent and isinstance(sent, str) and len(sent) <= REQUEST_ID_LENGTH_MAX and sent.isascii() and sent.isprintable():
        return sent
    return f"{_PROCESS}{next(_numbers):016x}"
