"""Control routes for money: a tax, a customer's discount, disputes, limits; see `control`."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_sandbox import errors, state
from stripe_sandbox.api import context, requests
from stripe_sandbox.control import control
from stripe_sandbox.invoices import discounts, invoice_limits, totals
from stripe_sandbox.payments import disputes, payments

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


class Dispute(pydantic.BaseModel):
    """A dispute about the payment of an invoice; without an amount, about all of it."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    invoice: str
    amount: int | None = None
    reason: str = "fraudulent"


class Decision(pydantic.BaseModel):
    """How the bank decides a dispute."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    status: Literal["won", "lost"]


class Limits(pydantic.BaseModel):
    """Requests a second for each endpoint, and whether a subscription's new invoices are limited."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    per_second: Annotated[int, pydantic.Field(ge=1)] | None = None
    invoices: bool = False


class MoneyControl:
    """The endpoints of the routes."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/_sandbox/tax", self.set_tax, methods=["POST"]),
            Route("/_sandbox/discounts", self.set_discount, methods=["POST"]),
            Route("/_sandbox/limits", self.set_limits, methods=["POST"]),
            Route("/_sandbox/disputes", self.open_dispute, methods=["POST"]),
            Route("/_sandbox/disputes/{dispute_id}", self.decide_dispute, methods=["POST"]),
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

    async def set_limits(self, request: Request) -> Response:
        """Set Stripe's limits. There are none at the start, so that tests of other things need not wait."""

        def act(scope: context.Context, asked: Limits) -> state.Json:
            scope.work.set_fact(invoice_limits.LIMITED, int(asked.invoices))
            self._sandbox.rate_limits.set(asked.per_second)
            return asked.model_dump()

        return await self._acted(request, Limits, act)

    async def open_dispute(self, request: Request) -> Response:
        """Dispute the payment of an invoice, as the customer's bank does."""

        def act(scope: context.Context, asked: Dispute) -> state.Json:
            invoice = scope.work.get("invoice", asked.invoice)
            return disputes.open_for(scope, payments.charge_of(scope, invoice), asked.amount, asked.reason)

        return await self._acted(request, Dispute, act)

    async def decide_dispute(self, request: Request) -> Response:
        """Close a dispute."""
        dispute_id = request.path_params["dispute_id"]
        return await self._acted(
            request, Decision, lambda scope, asked: disputes.decide(scope, dispute_id, asked.status)
        )

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
