"""Control routes, which Stripe does not have: they move the clock, cause faults and show the requests.

The routes need no API key. They accept only JSON, which a browser does not let a page of another site send here.
"""

import asyncio
from typing import Annotated, Any, TypeVar

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors
from stripe_sandbox.api import requests
from stripe_sandbox.control import faults
from stripe_sandbox.customers import payment_methods
from stripe_sandbox.time import timeline

PAUSE_SECONDS = 2.5
"""Real time between the steps of an advance: a worker that polls every second sends usage before it is invoiced."""

PAUSE_SECONDS_MAX = 60.0
DELIVERY_SECONDS_MAX = 120.0

M = TypeVar("M", bound=pydantic.BaseModel)


class Step(pydantic.BaseModel):
    """The most seconds that the clock may move, and the most seconds to wait until events are delivered."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[int, pydantic.Field(ge=0, le=timeline.ADVANCE_SECONDS_MAX)]
    delivery_seconds: Annotated[float, pydantic.Field(ge=0, le=DELIVERY_SECONDS_MAX)] = timeline.DELIVERY_SECONDS


class Advance(Step):
    """Steps until the clock has moved by `seconds`, with a pause of real time after each due change."""

    pause_seconds: Annotated[float, pydantic.Field(ge=0, le=PAUSE_SECONDS_MAX)] = PAUSE_SECONDS


class Card(pydantic.BaseModel):
    """A customer's new card."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    customer: str
    card: payment_methods.Choice


class Control:
    """The endpoints of the routes."""

    def __init__(self, sandbox: requests.Sandbox, time: timeline.Timeline) -> None:
        self._sandbox = sandbox
        self._timeline = time

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/_sandbox/clock", self.clock, methods=["GET"]),
            Route("/_sandbox/clock/step", self.step, methods=["POST"]),
            Route("/_sandbox/clock/advance", self.advance, methods=["POST"]),
            Route("/_sandbox/faults", self.faults, methods=["GET"]),
            Route("/_sandbox/faults", self.add_faults, methods=["POST"]),
            Route("/_sandbox/faults", self.clear_faults, methods=["DELETE"]),
            Route("/_sandbox/faults/{number:int}", self.clear_faults, methods=["DELETE"]),
            Route("/_sandbox/cards", self.change_card, methods=["POST"]),
            Route("/_sandbox/requests", self.requests, methods=["GET"]),
            Route("/_sandbox/requests", self.clear_requests, methods=["DELETE"]),
        ]

    async def clock(self, _: Request) -> Response:
        """Answer the sandbox's time, and what will happen next."""
        clock = self._sandbox.clock
        following = timeline.shown(await self._timeline.next_due())
        return JSONResponse({"now": clock.now(), "offset_seconds": clock.offset_seconds, "next": following})

    async def step(self, request: Request) -> Response:
        """Move the clock to the next due change, but at most by `seconds`."""
        try:
            asked = await read(request, Step)
        except errors.ApiError as error:
            return refused(error)
        step = await self._timeline.step(asked.seconds, asked.delivery_seconds)
        return JSONResponse(_shown(step))

    async def advance(self, request: Request) -> Response:
        """Move the clock by `seconds`, from one due change to the next."""
        try:
            asked = await read(request, Advance)
        except errors.ApiError as error:
            return refused(error)
        left = asked.seconds
        while True:
            step = await self._timeline.step(left, asked.delivery_seconds)
            left -= step.moved_seconds
            if step.happened:
                await asyncio.sleep(asked.pause_seconds)
            if left <= 0:
                return JSONResponse(_shown(step))

    async def faults(self, _: Request) -> Response:
        """Answer the faults in force."""
        return JSONResponse(self._sandbox.faults.shown())

    async def add_faults(self, request: Request) -> Response:
        """Put a fault, or a list of faults, in force."""
        try:
            body = await _json(request)
            rules = _valid(faults.RULES, body if isinstance(body, list) else [body])
            numbers = self._sandbox.faults.add(rules)
        except errors.ApiError as error:
            return refused(error)
        return JSONResponse({"ids": numbers})

    async def clear_faults(self, request: Request) -> Response:
        """Remove the fault with the path's number; without a number, all faults."""
        self._sandbox.faults.clear(request.path_params.get("number"))
        self._sandbox.delivery.wake()
        return JSONResponse(self._sandbox.faults.shown())

    async def change_card(self, request: Request) -> Response:
        """Change or remove a customer's card, as the customer can in the portal."""
        try:
            asked = await read(request, Card)
            await self._sandbox.store.run(
                lambda work: payment_methods.change(self._sandbox.context(work), asked.customer, asked.card)
            )
        except errors.ApiError as error:
            return refused(error)
        self._sandbox.delivery.wake()
        return JSONResponse(asked.model_dump())

    async def requests(self, request: Request) -> Response:
        """Answer the logged requests, the oldest first; `?method=` and `?path=` (its beginning) select."""
        chosen = {name: request.query_params.get(name, "") for name in ("method", "path")}
        return JSONResponse(requests.shown_log(self._sandbox, **chosen))

    async def clear_requests(self, _: Request) -> Response:
        """Empty the log of requests."""
        self._sandbox.log.clear()
        return JSONResponse([])


async def read(request: Request, model: type[M]) -> M:
    """Read a JSON body. Raises InvalidParameter."""
    return _valid(pydantic.TypeAdapter(model), await _json(request))


async def _json(request: Request) -> Any:  # noqa: ANN401 - JSON
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise errors.InvalidParameter("The body must be JSON (Content-Type: application/json).")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > requests.BODY_BYTES_MAX:
            raise errors.InvalidParameter("The request is too large.")
    return _valid(pydantic.TypeAdapter(pydantic.Json[Any]), bytes(body))


T = TypeVar("T")


def _valid(adapter: pydantic.TypeAdapter[T], value: object) -> T:
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise errors.InvalidParameter(f"{place}: {first['msg']}" if place else first["msg"]) from error


def refused(error: errors.ApiError) -> Response:
    """Return the response with the API's form of an error."""
    return JSONResponse(error.body(), status_code=error.status)


def _shown(step: timeline.Step) -> dict[str, Any]:
    return {
        "now": step.now,
        "moved_seconds": step.moved_seconds,
        "happened": [timeline.shown(each) for each in step.happened],
        "undelivered": step.undelivered,
    }
