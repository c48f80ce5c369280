"""The HTTP port for operators: /metrics, /livez, /readyz. It has no TLS, so it must not be reachable from outside."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import prometheus_client
import structlog
import uvicorn
from prometheus_client import registry as registries
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from billing_svc.platform import settings

_log = structlog.get_logger("monitoring")

# Enough for some scrapers and probes, each with a short request.
CONNECTIONS_MAX = 32
KEEP_ALIVE_SECONDS = 75  # longer than a scraper's usual pause
STOP_SECONDS_MAX = 1


class _Server(uvicorn.Server):
    """uvicorn inside a process that handles signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGTERM and SIGINT alone."""
        yield


def app(metrics: Callable[[], Awaitable[bytes]], is_ready: Callable[[], Awaitable[bool]]) -> ASGIApp:
    """Return the application; `metrics` returns Prometheus' text format."""

    async def answer_metrics(_request: Request) -> Response:
        return Response(await metrics(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def answer_alive(_request: Request) -> Response:
        # The answer comes from the event loop: a process whose loop hangs does not answer.
        return PlainTextResponse("alive\n")

    async def answer_ready(_request: Request) -> Response:
        return PlainTextResponse("ready\n") if await is_ready() else PlainTextResponse("not ready\n", 503)

    return Starlette(
        routes=[
            Route("/metrics", answer_metrics, methods=["GET"]),
            Route("/livez", answer_alive, methods=["GET"]),
            Route("/readyz", answer_ready, methods=["GET"]),
        ]
    )


def app_of(registry: registries.CollectorRegistry, is_ready: Callable[[], bool]) -> ASGIApp:
    """Return the application of one process."""

    async def metrics() -> bytes:
        return prometheus_client.generate_latest(registry)

    async def ready() -> bool:
        return is_ready()

    return app(metrics, ready)


@contextlib.asynccontextmanager
async def answering(listen: str | None, application: ASGIApp) -> AsyncIterator[int | None]:
    """Answer on `listen` (host:port) during the context, and yield the port; None does not listen.

    Raises SettingsError if the address cannot be listened on.
    """
    if listen is None:
        yield None
        return
    with _bound(listen) as listener:
        port: int = listener.getsockname()[1]
        server = _Server(
            uvicorn.Config(
                application,
                http="h11",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS_MAX,
            )
        )
        running = asyncio.create_task(server.serve(sockets=[listener]))
        _log.info("monitoring", port=port)
        try:
            yield port
        finally:
            server.should_exit = True
            await running


def _bound(listen: str) -> socket.socket:
    host, port = settings.host_and_port("BILLING_MONITORING_LISTEN", listen)
    try:
        # create_server sets SO_REUSEADDR: without it, a restart would wait until the old connections have timed out.
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, reuse_port=False
        )
    except OSError:  # its text quotes the address
        raise settings.SettingsError(
            "BILLING_MONITORING_LISTEN: cannot listen: the host is not an address of this machine, or the port is taken"
        ) from None
