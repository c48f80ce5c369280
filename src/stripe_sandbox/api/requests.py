"""Answers every API request: authenticates, decodes and validates it, runs its handler in one transaction."""

import asyncio
import collections
import dataclasses
import hashlib
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stripe_sandbox import errors, settings, state
from stripe_sandbox.api import context, forms, rules, validation
from stripe_sandbox.control import connections, faults, limits
from stripe_sandbox.delivery import delivery
from stripe_sandbox.time import clock

Handler = Callable[..., state.Json]

BODY_BYTES_MAX = 1024 * 1024
"""Far larger than any form of billing-svc."""

KEY_LENGTH_MAX = 255
KEY_SECONDS = 24 * 3600
"""Stripe may forget a key after a day. The sandbox always does, so that code which needs a key for longer fails."""

LOG_ENTRIES_MAX = 10_000
"""The most requests that the log keeps for tests."""

LOG_BODY_BYTES_MAX = 16 * 1024
"""The log keeps a larger request without its parameters, so that it stays within some tens of megabytes."""

ALWAYS_THERE = ("/_sandbox/", "/healthz")
"""Beginnings of paths that are answered also during the fault `away`."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """How a method and path are answered; `supported`: the parameters of the SDK's type that have an effect here."""

    method: str
    path: str
    handler: Handler
    params_type: type
    supported: str = ""

    def check(self, params: forms.Params) -> forms.Params:
        """Return the parameters with their types. Raises InvalidParameter."""
        typed = validation.check(self.params_type, params)
        rules.check_common(typed)
        rules.check_supported(typed, ("expand", *self.supported.split()))
        return typed


@dataclasses.dataclass(slots=True)
class LogEntry:
    """A request in the log, for tests; `status` is None while, or because, the request gets no answer.

    `object` is the id of the object in the answer, `at` the sandbox's time in unix seconds, `fault` the kind of fault
    that the request met. The caller's API key is not kept.
    """

    method: str
    path: str
    idempotency_key: str | None
    at: int = 0
    params: forms.Params | None = None
    status: int | None = None
    replayed: bool = False
    object: str | None = None
    fault: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """An answer; also stored with the idempotency key."""

    status: int
    body: state.Json
    replayed: bool = False
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Sandbox:
    """The state, clock, delivery, faults and log that requests, pages and control routes share."""

    settings: settings.Settings
    store: state.State
    clock: clock.SandboxClock
    delivery: delivery.Delivery
    faults: faults.Faults
    log: collections.deque[LogEntry] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=LOG_ENTRIES_MAX)
    )
    keys_in_use: set[str] = dataclasses.field(default_factory=set)
    rate_limits: limits.Limits = dataclasses.field(default_factory=limits.Limits)

    def context(self, work: state.Work, request_id: str | None = None, key: str | None = None) -> context.Context:
        """Return the context of a handler."""
        return context.Context(work, self.clock.now(), self.clock.wall(), self.settings, request_id, key)


def endpoint(sandbox: Sandbox, route: Route) -> Callable[[Request], Awaitable[Response]]:
    """Return the Starlette endpoint of a route."""

    async def answer(request: Request) -> Response:
        request_id = state.new_id("req")
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        struck = sandbox.faults.of_request(request.method, request.url.path)
        entry = LogEntry(request.method, request.url.path, key, sandbox.clock.now(), fault=struck.kind)
        sandbox.log.append(entry)
        if struck.delay_seconds:
            await asyncio.sleep(struck.delay_seconds)
        if struck.kind == "cut":
            return await connections.cut(request)
        try:
            authenticate(request.headers)
            params = await _params(request, entry)
            _refuse(struck)
            sandbox.rate_limits.check(f"{route.method} {route.path}", sandbox.clock.wall())
            reply = await _answer_once(sandbox, _Call(route, request.path_params, params, request_id, key, struck.rule))
        except errors.ApiError as error:
            reply = Reply(error.status, error.body(), headers=_advice(struck))
        except sqlite3.Error:
            # No transaction could begin or commit: another process has locked the file, or the disk is full.
            _log.exception("%s %s", route.method, route.path)
            reply = Reply(errors.Broken.status, errors.Broken("The state cannot be reached.").body())
        sandbox.delivery.wake()
        if struck.rule and struck.kind == "lost_answer":
            return await connections.lose_answer(request, struck.rule.seconds)
        entry.status, entry.replayed, entry.object = reply.status, reply.replayed, reply.body.get("id")
        return respond(reply, request_id)

    return answer


def _refuse(struck: faults.Struck) -> None:
    """Raise the error of a fault that refuses the request; its handler does not run."""
    match struck.kind:
        case "rate_limited":
            raise errors.TooMany("Too many requests.", code="rate_limit")
        case "conflict":
            raise errors.Locked("Another request is at work on this object.", code="lock_timeout")
        case "unavailable":
            raise errors.Unavailable("The sandbox was told to be unavailable.")


def _advice(struck: faults.Struck) -> dict[str, str]:
    if struck.rule is None or struck.rule.should_retry is None:
        return {}
    return {"Stripe-Should-Retry": str(struck.rule.should_retry).lower()}


class Away:
    """Cuts every connection during the fault `away`, except those of `ALWAYS_THERE`, which can end the fault."""

    def __init__(self, app: ASGIApp, sandbox: Sandbox) -> None:
        self._app = app
        self._sandbox = sandbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or cut its connection."""
        always = scope["type"] != "http" or scope["path"].startswith(ALWAYS_THERE)
        if always or not self._sandbox.faults.is_away:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        key = request.headers.get("idempotency-key")
        now = self._sandbox.clock.now()
        self._sandbox.log.append(LogEntry(request.method, request.url.path, key, now, fault="away"))
        await connections.cut(request)


def unknown_route(sandbox: Sandbox) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the endpoint for unknown paths: it answers 404."""

    async def answer(request: Request, _: Exception) -> Response:
        error = errors.NotFound(f"Unrecognized request URL ({request.method}: {request.url.path}).")
        key = request.headers.get("idempotency-key")
        sandbox.log.append(LogEntry(request.method, request.url.path, key, sandbox.clock.now(), status=error.status))
        return respond(Reply(error.status, error.body()), state.new_id("req"))

    return answer


def respond(reply: Reply, request_id: str) -> JSONResponse:
    """Return the HTTP response of a reply."""
    headers = {"Request-Id": request_id, "Stripe-Version": context.API_VERSION, **reply.headers}
    if reply.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(reply.body, status_code=reply.status, headers=headers)


def authenticate(headers: Mapping[str, str]) -> None:
    """Accept any test key. Raises Unauthenticated, and InvalidParameter for another API version."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.startswith("sk_test_"):
        raise errors.Unauthenticated("Give a test key as bearer token: Authorization: Bearer sk_test_...")
    version = headers.get("stripe-version", context.API_VERSION)
    if version != context.API_VERSION:
        raise errors.InvalidParameter(f"The sandbox speaks API version {context.API_VERSION} only.")


async def _params(request: Request, entry: LogEntry) -> forms.Params:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise errors.InvalidParameter("The request is too large.")
    content_type = request.headers.get("content-type", "application/x-www-form-urlencoded")
    if body and not content_type.startswith("application/x-www-form-urlencoded"):
        raise errors.InvalidParameter("The body must be a form (application/x-www-form-urlencoded).")
    query = request.url.query.encode()
    params = forms.decode(b"&".join(part for part in (query, bytes(body)) if part))
    if len(query) + len(body) <= LOG_BODY_BYTES_MAX:
        entry.params = params
    return params


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """A decoded request and its route."""

    route: Route
    path_ids: Mapping[str, str]
    params: forms.Params
    request_id: str
    key: str | None
    fault: faults.Rule | None

    @property
    def fingerprint(self) -> str:
        """The hash of method, path and parameters; a repeat of an idempotency key must have the same."""
        path = self.route.path.format(**self.path_ids)
        identity = json.dumps([self.route.method, path, self.params], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


async def _answer_once(sandbox: Sandbox, call: _Call) -> Reply:
    if call.key is None:
        return await sandbox.store.run(lambda work: _execute(sandbox.context(work, call.request_id), call))
    if not 0 < len(call.key) <= KEY_LENGTH_MAX:
        raise errors.InvalidParameter(f"An idempotency key has 1 to {KEY_LENGTH_MAX} characters.")
    if call.key in sandbox.keys_in_use:
        raise errors.KeyInUse("A request with this idempotency key is still under way.", code="idempotency_key_in_use")
    sandbox.keys_in_use.add(call.key)
    try:
        return await sandbox.store.run(
            lambda work: _execute_once(sandbox.context(work, call.request_id, call.key), call)
        )
    finally:
        sandbox.keys_in_use.discard(call.key)


def _execute_once(scope: context.Context, call: _Call) -> Reply:
    """Return the stored reply to the key's first request; without one, execute and store the reply, all atomically."""
    kept = scope.work.connection.execute(
        "SELECT fingerprint, status, response FROM idempotency WHERE key = ? AND created > ?",
        (scope.idempotency_key, scope.now - KEY_SECONDS),
    ).fetchone()
    if kept is None:
        reply = _execute(scope, call)
        scope.work.connection.execute(
            "INSERT OR REPLACE INTO idempotency (key, fingerprint, created, status, response) VALUES (?, ?, ?, ?, ?)",
            (scope.idempotency_key, call.fingerprint, scope.now, reply.status, json.dumps(reply.body)),
        )
        return reply
    if kept[0] != call.fingerprint:
        raise errors.KeyReused(
            f"The idempotency key '{scope.idempotency_key}' was used for another request, or with other parameters."
        )
    return Reply(kept[1], json.loads(kept[2]), replayed=True)


def _execute(scope: context.Context, call: _Call) -> Reply:
    """Run the handler and return its reply; after an error its changes are undone.

    Raises only errors that Stripe does not store with an idempotency key.
    """
    broken = call.fault is not None and call.fault.kind == "broken"
    told = Reply(errors.Broken.status, errors.Broken("The sandbox was told to fail.").body())
    if call.fault is not None and call.fault.kind == "meter_lag":
        scope = dataclasses.replace(scope, fault_seconds=call.fault.seconds or 0.0)
    if broken and call.fault and not call.fault.does_it:
        call.route.check(call.params)
        return told
    try:
        with scope.work.attempt():
            reply = _handled(scope, call)
            return told if broken else reply
    except errors.ApiError as error:
        if not error.remembered:
            raise
        return Reply(error.status, error.body())
    except Exception:  # noqa: BLE001 - any defect is logged and answered
        # A defect of the sandbox: the caller gets Stripe's 500, the log gets the traceback.
        _log.exception("%s %s", call.route.method, call.route.path)
        return Reply(errors.Broken.status, errors.Broken("The sandbox failed; its log says why.").body())


def _handled(scope: context.Context, call: _Call) -> Reply:
    """Return the handler's reply. Raises the errors after which the changes are undone."""
    try:
        return Reply(200, call.route.handler(scope, call.route.check(call.params), **call.path_ids))
    except errors.ApiError as error:
        if error.undone:
            raise
        return Reply(error.status, error.body())


def shown_log(sandbox: Sandbox, method: str = "", path: str = "") -> list[dict[str, Any]]:
    """Return the logged requests of a method (empty: any) whose path begins with `path`; the oldest first."""
    kept = (entry for entry in sandbox.log if method in {"", entry.method} and entry.path.startswith(path))
    return [dataclasses.asdict(entry) for entry in kept]
