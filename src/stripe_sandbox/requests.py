"""The path of every API request: authenticate, decode, validate, one transaction, answer."""

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

from stripe_sandbox import clock, context, delivery, errors, forms, rules, settings, state, validation

Handler = Callable[..., state.Json]

BODY_BYTES_MAX = 1024 * 1024
"""Far above any form that is sent here."""

KEY_LENGTH_MAX = 255
KEY_SECONDS = 24 * 3600
"""Stripe may forget a key after a day, so the sandbox does: what relies on more shows here."""

LOG_ENTRIES_MAX = 10_000
"""Requests kept for tests to look at."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """What answers a method and path: the parameters' type from the SDK, and those of them that have an effect here."""

    method: str
    path: str
    handler: Handler
    params_type: type
    supported: str = ""

    def check(self, params: forms.Params) -> forms.Params:
        """Give the parameters with their types. Raises InvalidParameter."""
        typed = validation.check(self.params_type, params)
        rules.check_common(typed)
        rules.check_supported(typed, ("expand", *self.supported.split()))
        return typed


@dataclasses.dataclass(slots=True)
class LogEntry:
    """One request, for tests to look at; the status is None until it is answered."""

    method: str
    path: str
    idempotency_key: str | None
    params: forms.Params | None = None
    status: int | None = None
    replayed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back, and kept under the idempotency key."""

    status: int
    body: state.Json
    replayed: bool = False


@dataclasses.dataclass(slots=True)
class Sandbox:
    """The parts that requests, pages and control routes share."""

    settings: settings.Settings
    store: state.State
    clock: clock.SandboxClock
    delivery: delivery.Delivery
    log: collections.deque[LogEntry] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=LOG_ENTRIES_MAX)
    )
    keys_in_use: set[str] = dataclasses.field(default_factory=set)

    def context(self, work: state.Work, request_id: str | None = None, key: str | None = None) -> context.Context:
        """Make what a handler works with."""
        return context.Context(work, self.clock.now(), self.clock.wall(), self.settings, request_id, key)


def endpoint(sandbox: Sandbox, route: Route) -> Callable[[Request], Awaitable[Response]]:
    """Make the Starlette endpoint of a route."""

    async def answer(request: Request) -> Response:
        request_id = state.new_id("req")
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        entry = LogEntry(request.method, request.url.path, key)
        sandbox.log.append(entry)
        try:
            authenticate(request.headers)
            entry.params = await _params(request)
            reply = await _answer_once(sandbox, route, request.path_params, entry, request_id)
        except errors.ApiError as error:
            reply = Reply(error.status, error.body())
        except sqlite3.Error:
            # Not even a transaction could be had: the file is locked by somebody else, or the disk is full.
            _log.exception("%s %s", route.method, route.path)
            reply = Reply(errors.Broken.status, errors.Broken("The state cannot be reached.").body())
        entry.status, entry.replayed = reply.status, reply.replayed
        sandbox.delivery.wake()
        return respond(reply, request_id)

    return answer


def unknown_route(sandbox: Sandbox) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Make the answer to what no route answers."""

    async def answer(request: Request, _: Exception) -> Response:
        error = errors.NotFound(f"Unrecognized request URL ({request.method}: {request.url.path}).")
        key = request.headers.get("idempotency-key")
        sandbox.log.append(LogEntry(request.method, request.url.path, key, status=error.status))
        return respond(Reply(error.status, error.body()), state.new_id("req"))

    return answer


def respond(reply: Reply, request_id: str) -> JSONResponse:
    """Give a reply as HTTP."""
    headers = {"Request-Id": request_id, "Stripe-Version": context.API_VERSION}
    if reply.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(reply.body, status_code=reply.status, headers=headers)


def authenticate(headers: Mapping[str, str]) -> None:
    """Any test key will do. Raises Unauthenticated."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.startswith("sk_test_"):
        raise errors.Unauthenticated("Give a test key as bearer token: Authorization: Bearer sk_test_...")
    version = headers.get("stripe-version", context.API_VERSION)
    if version != context.API_VERSION:
        raise errors.InvalidParameter(f"The sandbox speaks API version {context.API_VERSION} only.")


async def _params(request: Request) -> forms.Params:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise errors.InvalidParameter("The request is too large.")
    content_type = request.headers.get("content-type", "application/x-www-form-urlencoded")
    if body and not content_type.startswith("application/x-www-form-urlencoded"):
        raise errors.InvalidParameter("The body must be a form (application/x-www-form-urlencoded).")
    query = request.url.query.encode()
    return forms.decode(b"&".join(part for part in (query, bytes(body)) if part))


async def _answer_once(
    sandbox: Sandbox, route: Route, path_ids: Mapping[str, str], entry: LogEntry, request_id: str
) -> Reply:
    key, params = entry.idempotency_key, entry.params or {}
    if key is None:
        return await sandbox.store.run(
            lambda work: _execute(sandbox.context(work, request_id), route, path_ids, params)
        )
    if not 0 < len(key) <= KEY_LENGTH_MAX:
        raise errors.InvalidParameter(f"An idempotency key has 1 to {KEY_LENGTH_MAX} characters.")
    if key in sandbox.keys_in_use:
        raise errors.KeyInUse("A request with this idempotency key is still under way.", code="idempotency_key_in_use")
    sandbox.keys_in_use.add(key)
    try:
        return await sandbox.store.run(
            lambda work: _execute_once(sandbox.context(work, request_id, key), route, path_ids, params)
        )
    finally:
        sandbox.keys_in_use.discard(key)


def _execute_once(scope: context.Context, route: Route, path_ids: Mapping[str, str], params: forms.Params) -> Reply:
    """Give what the key's first request got, or execute and keep the reply, all in the one transaction."""
    path = route.path.format(**path_ids)
    fingerprint = hashlib.sha256(json.dumps([route.method, path, params], sort_keys=True).encode()).hexdigest()
    kept = scope.work.connection.execute(
        "SELECT fingerprint, status, response FROM idempotency WHERE key = ? AND created > ?",
        (scope.idempotency_key, scope.now - KEY_SECONDS),
    ).fetchone()
    if kept is None:
        reply = _execute(scope, route, path_ids, params)
        scope.work.connection.execute(
            "INSERT OR REPLACE INTO idempotency (key, fingerprint, created, status, response) VALUES (?, ?, ?, ?, ?)",
            (scope.idempotency_key, fingerprint, scope.now, reply.status, json.dumps(reply.body)),
        )
        return reply
    if kept[0] != fingerprint:
        raise errors.KeyReused(
            f"The idempotency key '{scope.idempotency_key}' was used for another request, or with other parameters."
        )
    return Reply(kept[1], json.loads(kept[2]), replayed=True)


def _execute(scope: context.Context, route: Route, path_ids: Mapping[str, str], params: forms.Params) -> Reply:
    """Run the handler. What failed leaves nothing behind but its answer; raises what no key remembers."""
    try:
        with scope.work.attempt():
            return Reply(200, route.handler(scope, route.check(params), **path_ids))
    except errors.ApiError as error:
        if not error.remembered:
            raise
        return Reply(error.status, error.body())
    except Exception:  # noqa: BLE001 - the last line of defence, which answers and logs
        # A fault of the sandbox itself: the caller gets Stripe's 500, the terminal the traceback.
        _log.exception("%s %s", route.method, route.path)
        return Reply(errors.Broken.status, errors.Broken("The sandbox failed; its log says why.").body())


def shown_log(sandbox: Sandbox) -> list[dict[str, Any]]:
    """Give the log of requests, the oldest first."""
    return [dataclasses.asdict(entry) for entry in sandbox.log]
