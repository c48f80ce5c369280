"""Server, sandbox, gateway and worker in the test's process, joined as in production; with faults between."""

import asyncio
import contextlib
import functools
import json
import pathlib
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import sqlalchemy as sa
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.v1 import stripe_event_pb2, subscription_pb2
from billing_svc.catalog import loading, model, versions
from billing_svc.inbox import apply_events
from billing_svc.platform import clock
from billing_svc.platform.database import tables
from billing_svc.stripe import client
from stripe_sandbox import app as sandbox_app
from stripe_sandbox import settings as sandbox_settings
from tests.billing_svc.service import CATALOGS, TOKEN, Billing
from webhook_gateway import app as gateway_app
from webhook_gateway import forwarding, serving

SECRET = "whsec_tests"

# Sees a request's method and path; returns the status to answer in place of the sandbox, or None.
Fault = Callable[[str, str], Awaitable[int | None]]


async def no_fault(_method: str, _path: str) -> int | None:
    return None


@dataclass
class Faults:
    """Stands before the sandbox's API. `before`: nothing has happened yet; `after`: it has, but no answer was sent."""

    app: ASGIApp | None = None
    before: Fault = no_fault
    after: Fault = no_fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        asked = scope["method"], scope["path"]
        status = await self.before(*asked)
        answer: list[Message] = []
        if status is None:

            async def keep(message: Message) -> None:
                answer.append(message)

            await self.app(scope, receive, keep)
            status = await self.after(*asked)
        if status is None:
            for message in answer:
                await send(message)
        else:
            error = {"error": {"type": "api_error", "message": "brought about by a test"}}
            await JSONResponse(error, status, {"Request-Id": "req_test"})(scope, receive, send)

    def crash(self, number: int, *, after: bool, task: Callable[[], asyncio.Task[Any]]) -> None:
        """End the task that calls at its n-th request (from 1), as a SIGKILL would: before or after it took effect."""
        seen = 0

        async def cut(_method: str, _path: str) -> int | None:
            nonlocal seen
            seen += 1
            if seen != number:
                return None
            task().cancel()
            return 503  # to nobody

        self.before, self.after = (no_fault, cut) if after else (cut, no_fault)

    def clear(self) -> None:
        self.before = self.after = no_fault


@dataclass
class Sandbox:
    """A running sandbox."""

    url: str
    http: httpx.AsyncClient
    faults: Faults = field(default_factory=Faults)

    async def requests(self, method: str = "", path: str = "") -> list[dict[str, Any]]:
        """Return the requests that reached it, by method and the beginning of the path."""
        entries = (await self.http.get("/_sandbox/requests")).json()
        return [one for one in entries if method in {"", one["method"]} and one["path"].startswith(path)]

    async def writes(self) -> list[dict[str, Any]]:
        return [one for one in await self.requests() if one["method"] != "GET"]

    async def call(self, method: str, path: str, **params: object) -> dict[str, Any]:
        """Do something at Stripe that the service does not; parameters are named as in a form."""
        pairs = {name: str(value) for name, value in params.items()}
        sent = {"data": pairs} if method == "POST" else {"params": pairs}
        # With a key, because without one it would pass for a write of the service's that lacks it.
        headers = {"Idempotency-Key": f"by-hand-{uuid.uuid4()}"} if method == "POST" else {}
        answer = await self.http.request(method, path, headers=headers, **sent)  # type: ignore[arg-type]  # one of two
        assert answer.is_success, answer.text
        data: dict[str, Any] = answer.json()
        return data

    async def all(self, path: str, **params: object) -> list[dict[str, Any]]:
        """Return a whole list, the newest first."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"starting_after": found[-1]["id"]} if found else {}
            page = await self.call("GET", path, limit=100, **params, **after)
            found += page["data"]
            if not page["has_more"]:
                return found

    async def control(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Call a route that Stripe does not have: `clock`, `clock/step`, `faults`."""
        answer = await self.http.request(method, f"/_sandbox/{path}", **({} if body is None else {"json": body}))  # type: ignore[arg-type]  # as above
        assert answer.is_success, answer.text
        return answer.json()

    async def fault(self, kind: str, **more: object) -> None:
        """Have it bring a fault about; see `stripe_sandbox.control.faults.Rule`."""
        await self.control("POST", "faults", {"kind": kind, **more})

    async def pay(self, url: str) -> dict[str, Any]:
        answer = await self.http.post(f"{url}/pay", headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        paid: dict[str, Any] = answer.json()
        return paid


@contextlib.asynccontextmanager
async def listening(build: Callable[[int], uvicorn.Server], port: int = 0) -> AsyncIterator[str]:
    """Serve on a port (0: a free one), and give the address."""
    # The protocol is named because asyncio switches Nagle's delay off only where it is: 40 ms a request.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", port))
        running = build(listener.getsockname()[1])
        task = asyncio.create_task(running.serve([listener]))
        while not running.started:
            assert not task.done(), "the server ended instead of starting"
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            await task


@contextlib.asynccontextmanager
async def sandbox_running(
    state_file: pathlib.Path, webhook_url: str | None = None, clock_file: pathlib.Path | None = None
) -> AsyncIterator[Sandbox]:
    faults = Faults()

    def build(port: int) -> uvicorn.Server:
        faults.app = sandbox_app.create_app(
            sandbox_settings.Settings(port, state_file, webhook_url, SECRET, clock_file)
        )
        return uvicorn.Server(
            uvicorn.Config(
                faults, log_level="error", access_log=False, ws="none", lifespan="on", timeout_graceful_shutdown=1
            )
        )

    async with (
        listening(build) as url,
        httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": "Bearer sk_test_tests"},
            trust_env=False,
            timeout=30,  # the test's own; it is no matter here how slow the machine is
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # an empty one: there is no TLS here
        ) as http,
    ):
        yield Sandbox(url, http, faults)


@contextlib.asynccontextmanager
async def gateway_running(target: str, port: int) -> AsyncIterator[None]:
    async with forwarding.connect(target, TOKEN) as forwarder:
        app = gateway_app.create_app([SECRET.encode()], forwarder)
        async with listening(lambda port: serving.build_server(app, "127.0.0.1", port), port):
            yield


def catalog_of(name: str, replacing: Mapping[str, str] | None = None) -> model.Catalog:
    """Load a shipped catalog, with pieces of its text replaced."""
    text = (CATALOGS / f"{name}.yaml").read_text()
    for old, new in (replacing or {}).items():
        assert old in text
        text = text.replace(old, new)
    return _loaded(text, f"{name}.yaml")


@functools.cache
def _loaded(text: str, name: str) -> model.Catalog:
    # Most tests publish the same file, and reading it takes longer than many of them do.
    return loading.load_text(text, name)


@dataclass
class World:
    """All of it. Events reach the service when a test takes them there, in the order that it likes."""

    billing: Billing
    sandbox: Sandbox
    stripe: client.Stripe
    inbox: apply_events.Inbox
    delivered: set[str] = field(default_factory=set)
    # Up to this event, all are delivered.
    _newest: str = ""

    async def rows(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
        async with self.billing.engine.connect() as conn:
            return list(await conn.execute(sa.select(table).where(*where)))

    async def execute(self, statement: sa.Executable) -> None:
        async with self.billing.engine.begin() as conn:
            await conn.execute(statement)

    async def checkout(self, account_id: str = "org_1", **more: Any) -> subscription_pb2.CreateCheckoutResponse:  # noqa: ANN401 - the message's fields
        request = subscription_pb2.CreateCheckoutRequest(account_id=account_id, **{"plan": "pro", **more})
        return await self.billing.subscriptions.CreateCheckout(request)

    async def subscription(self, account_id: str = "org_1") -> subscription_pb2.Subscription:
        request = subscription_pb2.GetSubscriptionRequest(account_id=account_id)
        return (await self.billing.subscriptions.GetSubscription(request)).subscription

    async def subscribe(self, account_id: str = "org_1", **more: Any) -> str:  # noqa: ANN401 - as above
        """Buy a plan at Stripe; the service has not heard of it yet. Returns the subscription's id."""
        page = await self.checkout(account_id, **more)
        return str((await self.sandbox.pay(page.url))["subscription"])

    async def events(self, prefix: str = "") -> list[dict[str, Any]]:
        """Return Stripe's events of a kind, the oldest first."""
        found = await self.sandbox.all("/v1/events")
        return [event for event in reversed(found) if event["type"].startswith(prefix)]

    async def deliver(self, *events: Mapping[str, Any]) -> None:
        for event in events:
            await self.billing.events.AcceptStripeEvent(
                stripe_event_pb2.AcceptStripeEventRequest(payload=json.dumps(event).encode())
            )
            self.delivered.add(event["id"])

    async def deliver_new(self) -> None:
        """Deliver and apply every event that was not delivered yet, the oldest first."""
        more = True
        while more:
            found, more = await self._listed_after(self._newest)
            await self.deliver(*(event for event in found if event["id"] not in self.delivered))
            self._newest = found[-1]["id"] if found else self._newest
        await self.apply_all()

    async def _listed_after(self, event_id: str) -> tuple[list[dict[str, Any]], bool]:
        """Return some events that are newer than one, the oldest first, and whether there are more."""
        if not event_id:
            return await self.events(), False
        page = await self.sandbox.call("GET", "/v1/events", limit=100, ending_before=event_id)
        return page["data"][::-1], page["has_more"]

    async def advance(
        self,
        by: timedelta,
        each_step: Callable[[], Awaitable[object]] | None = None,
        *,
        deliver: bool = True,
        apart: timedelta = timedelta.max,
    ) -> list[str]:
        """Move both clocks, from one thing that is due at Stripe to the next; return what happened there.

        At each step the new events are delivered and applied, and then `each_step` runs: what the worker's other loops
        would do, such as sealing and sending usage. Steps are at most `apart`.
        """
        left, happened = int(by.total_seconds()), list[str]()
        while left > 0:
            clock = await self.sandbox.control("GET", "clock")
            following = clock["next"]["at"] - clock["now"] if clock["next"] else left
            ahead = min(left, max(following, 0), int(apart.total_seconds()))
            # Ours first: what Stripe tells of an instant must not come to us before it.
            self.billing.clock.advance(timedelta(seconds=ahead))
            step = await self.sandbox.control("POST", "clock/step", {"seconds": ahead})
            while step["moved_seconds"] < ahead:
                more = await self.sandbox.control("POST", "clock/step", {"seconds": ahead - step["moved_seconds"]})
                more["moved_seconds"] += step["moved_seconds"]
                more["happened"] = step["happened"] + more["happened"]
                step = more
            left -= ahead
            happened += [each["what"] for each in step["happened"]]
            if deliver:
                await self.deliver_new()
            if each_step is not None:
                await each_step()
        return happened

    async def apply_all(self) -> None:
        while await self.inbox.apply_due():
            pass

    async def inbox_states(self) -> dict[str, tuple[str, str | None]]:
        return {row.event_id: (row.state, row.note) for row in await self.rows(tables.stripe_events)}

    def second_inbox(self, now: clock.Clock | None = None) -> apply_events.Inbox:
        return apply_events.Inbox(
            self.billing.transactions, versions.CatalogCache(), self.stripe, now or self.billing.clock
        )


def event_about(subject: Mapping[str, Any], type_: str, event_id: str | None = None, **more: object) -> dict[str, Any]:
    """Return an event as Stripe would send it."""
    return {
        "id": event_id or f"evt_{uuid.uuid4().hex}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": 1_790_000_000,
        "livemode": False,
        "type": type_,
        "data": {"object": subject},
        **more,
    }
