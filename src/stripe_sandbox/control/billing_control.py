"""Control routes for decisions that Stripe or the customer's bank would make; see `control`."""

from typing import Annotated, Literal

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors, state
from stripe_sandbox.api import requests
from stripe_sandbox.control import control, faults
from stripe_sandbox.invoices import charging, invoicing
from stripe_sandbox.meters import meter_errors

DRAFTS_SECONDS_MAX = 3 * 24 * 3600
"""The longest time for which Stripe keeps a draft if no webhook endpoint acknowledges its `invoice.created`."""


class Dunning(pydantic.BaseModel):
    """The status that a subscription gets after the last failed attempt to charge."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    ends: Literal["canceled", "unpaid", "paused"]
    pauses_at_first_failure: bool = False


class Delays(pydantic.BaseModel):
    """How long Stripe takes from now on; see `settings.Delays`. What is left out does not change."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    drafts: Annotated[int, pydantic.Field(ge=60, le=DRAFTS_SECONDS_MAX)] | None = None
    meters: Annotated[int, pydantic.Field(ge=0, le=faults.LAG_SECONDS_MAX)] | None = None
    search: Annotated[int, pydantic.Field(ge=0, le=state.VERSIONS_SECONDS)] | None = None


class Draft(pydantic.BaseModel):
    """How long after its creation a draft becomes final, and whether that fails; without an invoice, for all drafts."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    invoice: str | None = None
    seconds: Annotated[int, pydantic.Field(ge=60, le=DRAFTS_SECONDS_MAX)] | None = None
    fails: bool | None = None


class MeterErrors(pydantic.BaseModel):
    """Meter events that Stripe accepted but did not record, and the reason."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    identifiers: Annotated[list[str], pydantic.Field(min_length=1, max_length=meter_errors.SAMPLES_MAX)]
    code: meter_errors.Code = "meter_event_customer_not_found"


class BillingControl:
    """The endpoints of the routes."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/_sandbox/dunning", self.set_dunning, methods=["POST"]),
            Route("/_sandbox/delays", self.set_delays, methods=["POST"]),
            Route("/_sandbox/drafts", self.schedule_drafts, methods=["POST"]),
            Route("/_sandbox/meter_errors", self.report_meter_errors, methods=["POST"]),
        ]

    async def set_dunning(self, request: Request) -> Response:
        """Set how dunning ends; with Stripe, this is a setting in the dashboard."""
        try:
            asked = await control.read(request, Dunning)
        except errors.ApiError as error:
            return control.refused(error)

        def work(work: state.Work) -> None:
            work.set_fact(charging.DUNNING_END, charging.DUNNING_ENDS.index(asked.ends))
            work.set_fact(charging.PAUSES_AT_ONCE, int(asked.pauses_at_first_failure))

        await self._sandbox.store.run(work)
        return JSONResponse(asked.model_dump())

    async def set_delays(self, request: Request) -> Response:
        """Set how long Stripe takes, and answer all delays."""

        def work(work: state.Work) -> dict[str, int]:
            for name, seconds in asked.model_dump(exclude_none=True).items():
                work.set_fact(f"delay_{name}_seconds", seconds)
            scope = self._sandbox.context(work)
            return {name: scope.delay_seconds(name) for name in ("drafts", "meters", "search")}

        try:
            asked = await control.read(request, Delays)
        except errors.ApiError as error:
            return control.refused(error)
        return JSONResponse(await self._sandbox.store.run(work))

    async def schedule_drafts(self, request: Request) -> Response:
        """Choose when a draft, or every later draft, becomes final, and whether that fails."""

        def work(work: state.Work) -> None:
            scope = self._sandbox.context(work)
            if asked.invoice is not None:
                invoice = work.get("invoice", asked.invoice)
                if invoice["status"] != "draft":
                    raise errors.Refused("The invoice is not a draft any more.")
                invoicing.schedule(scope, invoice, asked.seconds, fails=asked.fails)
                return
            if asked.seconds is not None:
                work.set_fact("delay_drafts_seconds", asked.seconds)
            if asked.fails is not None:
                work.set_fact(invoicing.FAILS, int(asked.fails))

        try:
            asked = await control.read(request, Draft)
            await self._sandbox.store.run(work)
        except errors.ApiError as error:
            return control.refused(error)
        self._sandbox.delivery.wake()
        return JSONResponse(asked.model_dump())

    async def report_meter_errors(self, request: Request) -> Response:
        """Emit a thin event which says that accepted usage was not recorded."""
        try:
            asked = await control.read(request, MeterErrors)
        except errors.ApiError as error:
            return control.refused(error)
        event = await self._sandbox.store.run(
            lambda work: meter_errors.report(self._sandbox.context(work), asked.code, asked.identifiers)
        )
        self._sandbox.delivery.wake()
        return JSONResponse(event)
