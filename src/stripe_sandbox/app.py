"""Builds the sandbox from its parts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_sandbox import settings, state
from stripe_sandbox.api import requests, validation
from stripe_sandbox.control import billing_control, control, faults, money_control
from stripe_sandbox.delivery import delivery
from stripe_sandbox.pages import checkout_pages, home_page, invoice_pages, payment_link_pages, portal_pages
from stripe_sandbox.routes import table
from stripe_sandbox.time import clock, timeline


def create_app(config: settings.Settings) -> Starlette:
    """Build the sandbox: opens the state at once, and delivers events during the app's lifespan."""
    for route in table.ROUTES:
        validation.adapter(route.params_type)
    store = state.State(config.state_file)
    told = faults.Faults(config.faults_at_start)
    sandbox = requests.Sandbox(
        config, store, clock.SandboxClock(config.clock_file), delivery.Delivery(store, config, told), told
    )
    time = timeline.Timeline(sandbox)
    checkout = checkout_pages.CheckoutPages(sandbox)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await time.begin()
        running = [asyncio.create_task(sandbox.delivery.run()), asyncio.create_task(time.run())]
        try:
            yield
        finally:
            for each in running:
                each.cancel()
            await asyncio.wait(running)
            store.close()

    async def health(_: Request) -> Response:
        await store.run(lambda work: work.fact("clock_offset_seconds"))
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            *(Route(each.path, requests.endpoint(sandbox, each), methods=[each.method]) for each in table.ROUTES),
            Route("/checkout/{session_id}", checkout.show, methods=["GET"]),
            Route("/checkout/{session_id}/pay", checkout.pay, methods=["POST"]),
            Route("/checkout/{session_id}/cancel", checkout.cancel, methods=["POST"]),
            *invoice_pages.InvoicePages(sandbox).routes(),
            *home_page.HomePage(sandbox, time).routes(),
            *portal_pages.PortalPages(sandbox).routes(),
            *payment_link_pages.PaymentLinkPages(sandbox).routes(),
            *control.Control(sandbox, time).routes(),
            *billing_control.BillingControl(sandbox).routes(),
            *money_control.MoneyControl(sandbox).routes(),
            Route("/healthz", health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: requests.unknown_route(sandbox)},
        # The pages need no key, so a page of another site must not reach them by a domain that resolves to this
        # machine.
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=settings.OWN_NAMES),
            Middleware(requests.Away, sandbox),
        ],
        lifespan=lifespan,
    )
