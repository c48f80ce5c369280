"""The one place where the sandbox is put together."""

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

from stripe_sandbox import clock, delivery, pages, requests, routes, settings, state, validation


def create_app(config: settings.Settings) -> Starlette:
    """Build the sandbox. It reads its state at once, and delivers events while the app's lifespan lasts."""
    for route in routes.ROUTES:
        validation.adapter(route.params_type)
    store = state.State(config.state_file)
    sandbox = requests.Sandbox(config, store, clock.SandboxClock(), delivery.Delivery(store, config))
    checkout_pages = pages.CheckoutPages(sandbox)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        sandbox.clock.offset_seconds = await store.run(lambda work: work.fact("clock_offset_seconds"))
        delivering = asyncio.create_task(sandbox.delivery.run())
        try:
            yield
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await delivering
            store.close()

    async def requests_log(_: Request) -> Response:
        return JSONResponse(requests.shown_log(sandbox))

    async def health(_: Request) -> Response:
        await store.run(lambda work: work.fact("clock_offset_seconds"))
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            *(Route(each.path, requests.endpoint(sandbox, each), methods=[each.method]) for each in routes.ROUTES),
            Route("/checkout/{session_id}", checkout_pages.show, methods=["GET"]),
            Route("/checkout/{session_id}/pay", checkout_pages.pay, methods=["POST"]),
            Route("/checkout/{session_id}/cancel", checkout_pages.cancel, methods=["POST"]),
            Route("/_sandbox/requests", requests_log, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: requests.unknown_route(sandbox)},
        # The pages need no key, so another site must not reach them under a name of its own.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[settings.LOOPBACK, "localhost"])],
        lifespan=lifespan,
    )
