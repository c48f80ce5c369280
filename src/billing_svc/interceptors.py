"""What every RPC passes through, outermost first: see `server.LAYERS` for the order and its reasons.

A layer is a function that takes a method's name and the handler inside it, and returns the handler around it. They are
composed once for each method, not once for each call.
"""

import asyncio
import contextvars
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from billing_svc import access, errors

# In quotes: these classes take their parameters in the type checker alone.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Handler: TypeAlias = "Callable[[Any, Context], Awaitable[Any]]"
Layer: TypeAlias = Callable[[str, Handler], Handler]

ERROR_DOMAIN = "billing.internal"
REQUEST_ID_KEY = "x-request-id"
REQUEST_ID_LENGTH_MAX = 128
# Longer than any transaction's budget, so that what is cut off here hangs.
SERVER_DEADLINE_SECONDS = 15.0
# Past about 8 KiB of details a status is destroyed in transit; half of it leaves room for other trailers.
DETAILS_BYTES_MAX = 4096

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


class Interceptors(grpc.aio.ServerInterceptor):
    """Runs every handler inside the layers."""

    def __init__(self, layers: Sequence[Layer], tokens: access.Tokens) -> None:
        self._layers = layers
        self._tokens = tokens
        self._wrapped: dict[str, MethodHandler] = {}

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "MethodHandler | None":
        """Return the wrapped handler of the called method."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # grpc answers UNIMPLEMENTED; not kept, or names could fill the memory
                return None
            wrapped = self._wrap_stream(method, handler) if handler.response_streaming else self._wrap(method, handler)
            self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, method: str, handler: MethodHandler) -> MethodHandler:
        # Parsed inside the layers: grpc would parse before, and send the parser's text to the caller.
        run = _parse(handler)
        for layer in reversed(self._layers):
            run = layer(method, run)
        return grpc.unary_unary_rpc_method_handler(run, None, handler.response_serializer)

    def _wrap_stream(self, method: str, handler: MethodHandler) -> MethodHandler:
        # Only the standard services stream (health, reflection): what they need is the access check.
        inner: Any = handler.stream_stream or handler.unary_stream

        async def run(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401 - any message
            try:
                access.authorize(method, _metadata_value(context, "authorization"), self._tokens)
            except errors.BillingError as error:
                await _abort(context, error, "")
            async for response in inner(request, context):
                yield response

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(run, handler.request_deserializer, handler.response_serializer)


def identify(method: str, inner: Handler) -> Handler:
    """Give each call its id (the caller's own, if it sent a fit one), and write one log line for it."""

    async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
        sent = _metadata_value(context, REQUEST_ID_KEY) or ""
        fit = 0 < len(sent) <= REQUEST_ID_LENGTH_MAX and sent.isprintable()
        call = Call(sent if fit else uuid.uuid4().hex)
        _current.set(call)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        code = "CANCELLED"
        try:
            response = await inner(request, context)
            code = "OK"
        except grpc.aio.AbortError:
            code = context.code().name
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


def map_errors(method: str, inner: Handler) -> Handler:
    """Turn what a handler raises into a status with details. No exception's own text reaches a caller."""

    async def run(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
        call = current_call()
        try:
            return await inner(request, context)
        except errors.BillingError as error:
            call.reason = error.reason
            await _abort(context, error, call.request_id)
        except grpc.aio.AbortError:  # already a status; it is an Exception
            raise
        except NotImplementedError:  # what a generated servicer's methods raise until they are written
            call.reason = errors.NotAvailableYet.reason
            await _abort(context, errors.NotAvailableYet("this RPC is not available yet"), call.request_id)
        except Exception:  # noqa: BLE001 - the last resort: logged in full, answered with a fixed text
            call.reason = "INTERNAL"
            _log.exception("handler failed", method=method, request_id=call.request_id)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"internal error; request {call.request_id}",
                ((REQUEST_ID_KEY, call.request_id),),
            )

    return run


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
            current_call().caller = access.authorize(method, _metadata_value(context, "authorization"), tokens)
            return await inner(request, context)

        return run

    return layer


def _parse(handler: MethodHandler) -> Handler:
    deserialize: Any = handler.request_deserializer
    answer: Any = handler.unary_unary

    async def run(request: bytes, context: Context) -> Any:  # noqa: ANN401 - any message
        try:
            parsed = deserialize(request)
        except message.DecodeError as error:
            raise errors.MalformedMessage("the bytes are not a message of this RPC's request type") from error
        current_call().account_id = getattr(parsed, "account_id", "")[:REQUEST_ID_LENGTH_MAX]
        return await answer(parsed, context)

    return run


def _metadata_value(context: Context, key: str) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else None
    return None


async def _abort(context: Context, error: errors.BillingError, request_id: str) -> None:
    status = status_pb2.Status(
        code=getattr(code_pb2, error.code.name),
        message=error.message[:DETAILS_BYTES_MAX],
    )
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    ]
    if isinstance(error, errors.InvalidRequest):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=one.field, description=one.description)
                    for one in error.violations
                ]
            )
        )
    if isinstance(error, errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() <= DETAILS_BYTES_MAX:
            status.details.append(packed)
    answer = rpc_status.to_status(status)
    await context.abort(answer.code, answer.details, (*answer.trailing_metadata, (REQUEST_ID_KEY, request_id)))
