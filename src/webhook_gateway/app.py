"""The HTTP application: receives a webhook, verifies it, forwards it and answers."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import h11
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from webhook_gateway import body, event, forwarding, signature
from webhook_gateway import metrics as metrics_module

RETRY_AFTER_SECONDS = 5  # for people and proxies that repeat a request; Stripe has its own schedule

_ANSWER_KEY = "webhook_gateway.answer"  # the key of the `Answer` in the ASGI scope, which `RequestLog` reads

_log = structlog.get_logger("webhook_gateway")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request, and the values for its log line. `event_id` is set only after the signature matched."""

    status: HTTPStatus
    reason: str
    level: int = logging.INFO
    event_id: str | None = None
    grpc_code: str | None = None


_ANSWERS: Mapping[forwarding.Outcome, tuple[HTTPStatus, str, int]] = {
    forwarding.Outcome.STORED: (HTTPStatus.OK, "stored", logging.INFO),
    forwarding.Outcome.DUPLICATE: (HTTPStatus.OK, "duplicate", logging.INFO),
    forwarding.Outcome.REFUSED: (HTTPStatus.BAD_REQUEST, "refused_by_service", logging.WARNING),
    # The gateway's own settings are wrong: Stripe must repeat until an operator, who sees the error log, corrects them.
    forwarding.Outcome.MISCONFIGURED: (HTTPStatus.SERVICE_UNAVAILABLE, "gateway_misconfigured", logging.ERROR),
    forwarding.Outcome.AWAY: (HTTPStatus.SERVICE_UNAVAILABLE, "service_unavailable", logging.WARNING),
}


class Gateway:
    """The HTTP endpoints; they share a forwarder."""

    def __init__(self, secrets: Sequence[bytes], forwarder: forwarding.Forwarder, body_seconds_max: float) -> None:
        self._secrets = secrets
        self._body_seconds_max = body_seconds_max
        self._forwarder = forwarder

    async def receive_webhook(self, request: Request) -> ASGIApp:
        """Answer 200 only after the service has stored the event."""
        answer = await self._judge(request)
        response = _respond(request, answer)
        return body.AnswerThenDiscard(response) if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else response

    async def _judge(self, request: Request) -> Answer:
        try:
            raw = await body.read(request, self._body_seconds_max)
        except body.BodyRefusedError as refusal:
            return Answer(refusal.status, refusal.reason)
        # Repeated headers are joined to a single list, as HTTP says; a second timestamp then makes it malformed.
        header = b",".join(value for name, value in request.scope["headers"] if name == b"stripe-signature")
        fault = signature.verify(raw, header, self._secrets, datetime.now(UTC))
        if fault is not None:
            return Answer(HTTPStatus.BAD_REQUEST, fault.value)
        try:
            event_id = event.read_id(raw)
        except event.NotAnEventError as error:
            return Answer(HTTPStatus.BAD_REQUEST, error.reason, logging.WARNING)
        delivery = await self._forwarder.forward(raw, event_id)
        status, reason, level = _ANSWERS[delivery.outcome]
        return Answer(status, reason, level, event_id, delivery.code)

    async def answer_alive(self, request: Request) -> ASGIApp:
        """Answer that this process is alive; says nothing about the service."""
        return _respond(request, Answer(HTTPStatus.OK, "alive", logging.DEBUG))

    async def answer_ready(self, request: Request) -> ASGIApp:
        """Answer whether the service is serving, so that a delivery can succeed."""
        if await self._forwarder.is_service_serving():
            return _respond(request, Answer(HTTPStatus.OK, "ready", logging.DEBUG))
        return _respond(request, Answer(HTTPStatus.SERVICE_UNAVAILABLE, "service_unavailable", logging.WARNING))


class RequestLog:
    """Counts each request and writes a log line for it, without body, header, path or secret at any log level."""

    def __init__(self, app: ASGIApp, metrics: metrics_module.Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, then count and log it."""
        started = time.monotonic()
        try:
            # Raised if bytes after the request broke the connection, which was answered with an error: no defect here.
            with contextlib.suppress(h11.LocalProtocolError):
                await self._app(scope, receive, send)
        finally:
            answer: Answer = scope.get(_ANSWER_KEY) or Answer(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal", logging.ERROR
            )
            seconds = time.monotonic() - started
            self._metrics.answered(answer.status, answer.reason, seconds)
            _log.log(
                answer.level,
                "request",
                status=answer.status,
                reason=answer.reason,
                event_id=answer.event_id,
                grpc_code=answer.grpc_code,
                duration_ms=round(seconds * 1000, 1),
            )


def create_app(
    secrets: Sequence[bytes],
    forwarder: forwarding.Forwarder,
    body_seconds_max: float = body.READ_SECONDS_MAX,
    metrics: metrics_module.Metrics | None = None,
) -> ASGIApp:
    """Build the application. The caller closes the forwarder after the last request."""
    gateway = Gateway(secrets, forwarder, body_seconds_max)
    app = Starlette(
        routes=[
            Route("/stripe/webhook", gateway.receive_webhook, methods=["POST"]),
            Route("/healthz", gateway.answer_alive, methods=["GET"]),
            Route("/readyz", gateway.answer_ready, methods=["GET"]),
        ],
        middleware=[Middleware(RequestLog, metrics or metrics_module.Metrics())],
        exception_handlers={HTTPException: _answer_no_route, Exception: _answer_defect},
    )
    app.router.redirect_slashes = False  # every other path is a 404; Stripe counts a redirect as a failure
    return app


def _respond(request: Request, answer: Answer) -> JSONResponse:
    request.scope[_ANSWER_KEY] = answer
    content = {"status": answer.reason} if answer.status == HTTPStatus.OK else {"error": answer.reason}
    headers = {}
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    if answer.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["connection"] = "close"  # the rest of the body must not be read as the next request
    return JSONResponse(content, answer.status, headers)


async def _answer_no_route(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    reasons = {404: "not_found", 405: "method_not_allowed"}
    response = _respond(request, Answer(HTTPStatus(error.status_code), reasons.get(error.status_code, "refused")))
    response.headers.update(error.headers or {})  # a 405 names the allowed methods
    return response


async def _answer_defect(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse(
        {"error": "internal"}, HTTPStatus.INTERNAL_SERVER_ERROR
    )  # Stripe repeats; the traceback goes to the log
