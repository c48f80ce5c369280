"""Control routes for decisions that Stripe or the customer's bank would make; see `control`."""

from typing import Annotated, Literal

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors, state
from stripe_sandbox.api import requests
from stripe_sandbox.control import control
from stripe_sandbox.invoices import charging
from stripe_sandbox.meters import meter_errors


class Dunning(pydantic.BaseModel):
    """The status that a subscription gets after the last failed attempt to charge."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    ends: Literal["canceled", "unpaid", "paused"]
    pauses_at_first_failure: bool = False


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
