"""Control routes for money: a tax, a customer's discount; see `control`."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors, state
from stripe_sandbox.api import context, requests
from stripe_sandbox.control import control
from stripe_sandbox.invoices import discounts, totals

M = TypeVar("M", bound=pydantic.BaseModel)


class Tax(pydantic.BaseModel):
    """A tax on every invoice that is not final yet, in percent; 0 for none."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    percent: Annotated[float, pydantic.Field(ge=0, le=100)]


class Discount(pydantic.BaseModel):
    """A customer's discount; without a coupon, the present discount ends."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    customer: str
    coupon: str | None = None


class MoneyControl:
    """The endpoints of the routes."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/_sandbox/tax", self.set_tax, methods=["POST"]),
            Route("/_sandbox/discounts", self.set_discount, methods=["POST"]),
        ]

    async def set_tax(self, request: Request) -> Response:
        """Set the tax; with Stripe, tax rates and automatic taxes are settings in the dashboard."""

        def act(scope: context.Context, asked: Tax) -> state.Json:
            scope.work.set_fact(totals.TAX_BASIS_POINTS, round(asked.percent * 100))
            return asked.model_dump()

        return await self._acted(request, Tax, act)

    async def set_discount(self, request: Request) -> Response:
        """Give a customer a discount, or end it."""

        def act(scope: context.Context, asked: Discount) -> state.Json:
            made = discounts.set_for_customer(scope, asked.customer, asked.coupon)
            return {**asked.model_dump(), "discount": made["id"] if made else None}

        return await self._acted(request, Discount, act)

    async def _acted(
        self, request: Request, model: type[M], act: Callable[[context.Context, M], state.Json]
    ) -> Response:
        try:
            asked = await control.read(request, model)
            done = await self._sandbox.store.run(lambda work: act(self._sandbox.context(work), asked))
        except errors.ApiError as error:
            return control.refused(error)
        self._sandbox.delivery.wake()
        return JSONResponse(done)
