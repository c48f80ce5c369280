"""What every RPC passes through, outermost first: see `server.LAYERS` for the order and its reasons.

A layer is a function that takes a method's name and the handler inside it, and returns the handler around it. They are
composed once for each method, not once for each call.
"""

import asyncio
import contextvars
import functools
import inspect
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from billing_svc import access, errors, scope, tls
from billing_svc.monitoring import metrics
from billing_svc.rpc import calls, serving

Context: TypeAlias = calls.Call
MethodHandler: TypeAlias = serving.MethodHandler
Handler: TypeAlias = serving.Handler
Layer: TypeAlias = Callable[[str, Handler], Handler]
Metadata: TypeAlias = calls.Metadata

ERROR_DOMAIN = "billing.internal"
REQUEST_ID_KEY = "x-request-id"
REQUEST_ID_LENGTH_MAX = 128
# Longer than any transaction's budget, so that what is cut off here hangs.
SERVER_DEADLINE_SECONDS = 15.0
# Watches of the service's health by those who balance and supervise, which need no token, and reflection.
STREAMS_AT_ONCE = 100
# Past about 8 KiB of trailers a status is destroyed in transit. The message travels twice: by itself, where a byte that
# is not ASCII takes three, and within the details, which base64 makes a third longer. With these bounds both fit.
MESSAGE_BYTES_MAX = 1024
DETAILS_BYTES_MAX = 3072

_log = structlog.get_logger("rpc")


@dataclass(slots=True)
class Call:
    """What is known of the call under way."""

    request_id: str
    caller: access.Caller = access.ANONYMOUS
    account_id: str = ""
    reason: str = ""
    started: float = field(default_factory=time.perf_counter)


_current: contextvars.ContextVar[Call] = contextvars.ContextVar("call")


def current_call() -> Call:
    """Return the call that the running handler answers."""
    return _current.get()


class Interceptors:
    """Runs every handler inside the layers; the `Routing` of a server."""

    def __init__(self, layers: Sequence[Layer], tokens: access.Tokens) -> None:
        self._layers = layers
        self._tokens = tokens
        # All streams together, whichever their method.
        self._limit_streams = limit_calls(STREAMS_AT_ONCE)

    def route(self, method: str, handler: MethodHandler) -> serving.Route:
        """Return how a method is answered."""
        run = self._wrap_stream(method, handler) if handler.response_streaming else self._wrap(method, handler)
        serialize: Any = handler.response_serializer
        return serving.Route(run, self._refuse(method), serialize, streams_requests=handler.request_streaming)

    def is_refused(self, method: str, metadata: Metadata) -> bool:
        """Say whether nobody knows the caller: a stranger's megabytes, and those that never come, take nothing."""
        return access.is_strangers(method, _metadata_value(metadata, "authorization"), self._tokens)

    def _refuse(self, method: str) -> Handler:
        async def run(_request: object, _context: Context) -> None:
            raise errors.Unauthenticated("the token is not known")

        refusing: Handler = run
        for layer in reversed(self._layers):
            refusing = layer(method, refusing)
        return refusing

    def _wrap(self, method: str, handler: MethodHandler) -> Handler:
        # Parsed inside the layers, so that what does not parse is refused in our words.
        run = _parse(method, handler)
        for layer in reversed(self._layers):
            run = layer(method, run)
        return run

    def _wrap_stream(self, method: str, handler: MethodHandler) -> Handler:
        # Only the standard services stream (health, reflection). A watch lasts, so its time is not limited.
        run = _parse_and_stream(handler)
        for layer in (authenticate(self._tokens), self._limit_streams, map_errors, identify):
            run = layer(method, run)
        return run


def identify(method: str, inner: Handler) -> Handler:
    """Give each call its id (the caller's own, if it sent a fit one), and write one log line for it."""

    async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
        sent = _metadata_value(context.metadata, REQUEST_ID_KEY) or ""
        # What is not ASCII cannot be sent back.
        fit = 0 < len(sent) <= REQUEST_ID_LENGTH_MAX and sent.isascii() and sent.isprintable()
        call = Call(sent if fit else _new_request_id())
        _current.set(call)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        code = "CANCELLED"
        try:
            response = await inner(request, context)
            code = "OK"
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        finally:
            _log.info(
                "call",
                method=method,
                code=code,
                reason=call.reason,
                caller=call.caller.name,
                account=call.account_id,
                request_id=call.request_id,
                ms=round((time.perf_counter() - call.started) * 1000, 2),
            )
        return response

    return run


def count_calls(counted: metrics.Calls) -> Layer:
    """Return the layer that counts how calls end, and how long they took."""

    def layer(method: str, inner: Handler) -> Handler:
        count = counted.of(method)

        async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
            started = time.perf_counter()
            code, reason = "CANCELLED", ""
            try:
                response = await inner(request, context)
                code = "OK"
            except grpc.aio.AbortError:
                code, reason = _code_of(context), current_call().reason
                raise
            finally:
                count(code, reason, time.perf_counter() - started)
            return response

        return run

    return layer


def map_errors(method: str, inner: Handler) -> Handler:
    """Turn what a handler raises into a status with details. No exception's own text reaches a caller."""

    async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
        call = current_call()
        try:
            return await inner(request, context)
        except errors.NotAvailableYet as error:
            call.reason = error.reason
            await _abort(context, errors.NotAvailableYet(error.message, {"rpc": method}), call.request_id)
        except errors.BillingError as error:
            call.reason = error.reason
            await _abort(context, error, call.request_id)
        except grpc.aio.AbortError:  # already a status; it is an Exception
            raise
        except NotImplementedError:  # what a generated servicer's methods raise until they are written
            call.reason = errors.NotAvailableYet.reason
            unwritten = errors.NotAvailableYet("this RPC is not available yet", {"rpc": method})
            await _abort(context, unwritten, call.request_id)
        except Exception:  # noqa: BLE001 - the last resort: logged in full, answered with a fixed text
            call.reason = "INTERNAL"
            _log.exception("handler failed", method=method, request_id=call.request_id)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"internal error; request {call.request_id}",
                ((REQUEST_ID_KEY, call.request_id),),
            )

    return run


def limit_calls(calls_max: int) -> Layer:
    """Return the layer that sheds calls past `calls_max` under way in this process, all methods together."""
    under_way = 0

    def layer(_method: str, inner: Handler) -> Handler:
        async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
            nonlocal under_way
            if under_way >= calls_max:
                raise errors.Overloaded("the server has more calls under way than it can answer soon")
            under_way += 1
            try:
                return await inner(request, context)
            finally:
                under_way -= 1

        return run

    return layer


def limit_time(_method: str, inner: Handler) -> Handler:
    """Bound every call on the server, also where the client set no deadline."""

    async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
        try:
            async with asyncio.timeout(SERVER_DEADLINE_SECONDS):
                return await inner(request, context)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"not answered within {SERVER_DEADLINE_SECONDS:g} s; the outcome is unknown, repeat with the same id"
            ) from error

    return run


def authenticate(tokens: access.Tokens) -> Layer:
    """Return the layer that lets only those in who were given the RPC."""

    def layer(method: str, inner: Handler) -> Handler:
        async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
            call = current_call()
            authorization = _metadata_value(context.metadata, "authorization")
            shown: Sequence[str] = ()
            if authorization is None and tokens.know_certificates:
                shown = tuple(tls.names(context.auth_context()))
            call.caller = access.authorize(method, authorization, tokens, shown)
            return await inner(request, context)

        return run

    return layer


def _parse(method: str, handler: MethodHandler) -> Handler:
    answer: Any = handler.unary_unary
    confined = scope.confine(method, answer)

    async def run(request: bytes, context: Context) -> Any:  # noqa: ANN401 - any message
        parsed = _message(handler, request)
        call = current_call()
        call.account_id = getattr(parsed, "account_id", "")[:REQUEST_ID_LENGTH_MAX]
        if call.caller.account_prefix is not None:
            return await confined(call.caller, parsed, context)
        return await answer(parsed, context)

    return run


def _parse_and_stream(handler: MethodHandler) -> Handler:
    """Return a handler that writes its answers instead of returning them, so that the layers fit around it."""
    answer: Any = handler.stream_stream or handler.unary_stream

    async def run(request: Any, context: Context) -> None:  # noqa: ANN401 - bytes, or a stream of them
        parsed = _messages(handler, request) if handler.request_streaming else _message(handler, request)
        answers = answer(parsed, context)
        if inspect.isawaitable(answers):  # it writes by itself
            await answers
            return
        async for one in answers:
            await context.write(one)

    return run


def _message(handler: MethodHandler, request: bytes) -> Any:  # noqa: ANN401 - any message
    deserialize: Any = handler.request_deserializer
    try:
        return deserialize(request)
    except message.DecodeError as error:
        raise errors.MalformedMessage("the bytes are not a message of this RPC's request type") from error


async def _messages(handler: MethodHandler, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _message(handler, request)


def _code_of(context: Context) -> str:
    """Return the status that a call was aborted with."""
    code = context.code()
    return "UNKNOWN" if code is None else code.name


def _new_request_id() -> str:
    # It need be unique, not secret, and each call has one.
    return f"{random.getrandbits(128):032x}"


def _metadata_value(metadata: Metadata, key: str) -> str | None:
    for name, value in metadata:
        if name == key:
            return value if isinstance(value, str) else None
    return None


async def _abort(context: Context, error: errors.BillingError, request_id: str) -> None:
    # Shedding has to cost less than what it sheds.
    answer = _shedding(error.message, error.retry_after_seconds) if type(error) is errors.Overloaded else _answer(error)
    await context.abort(answer.code, answer.details, (*answer.trailing_metadata, (REQUEST_ID_KEY, request_id)))


@functools.lru_cache(maxsize=16)  # one for each bound; the texts are ours
def _shedding(message: str, retry_after_seconds: float) -> grpc.Status:
    return _answer(errors.Overloaded(message, retry_after_seconds))


def _answer(error: errors.BillingError) -> grpc.Status:
    status = status_pb2.Status(
        code=getattr(code_pb2, error.code.name),
        message=error.message.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore"),
    )
    _add(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    if isinstance(error, errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.InvalidRequest):
        _add(status, _bad_request(error.violations, DETAILS_BYTES_MAX - status.ByteSize()))
    return rpc_status.to_status(status)


def _add(status: status_pb2.Status, detail: message.Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    if status.ByteSize() + packed.ByteSize() <= DETAILS_BYTES_MAX:
        status.details.append(packed)


def _bad_request(violations: Sequence[errors.FieldViolation], bytes_max: int) -> error_details_pb2.BadRequest:
    """Return as many violations, from the first on, as fit."""
    bad = error_details_pb2.BadRequest()
    for one in violations:
        bad.field_violations.add(field=one.field, description=one.description)
        # What packing adds: the type's name.
        if bad.ByteSize() + len(bad.DESCRIPTOR.full_name) + 64 > bytes_max:
            del bad.field_violations[-1]
            break
    return bad
