"""The gateway's metrics, and the port that answers them, which is not the port that Stripe calls."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import prometheus_client
import uvicorn
from prometheus_client import registry as registries

CONNECTIONS_MAX = 32  # some scrapers
STOP_SECONDS_MAX = 1
# Up to the gateway's time limits for a slow body and a slow service together.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)

# A `_created` series would double each metric, only to tell when it was first counted.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Requests by outcome. Label values are the fixed words of `app.Answer`, so the number of series is bounded."""

    def __init__(self) -> None:
        self.registry = registries.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._requests = prometheus_client.Counter(
            "billing_gateway_requests", "Requests that were answered.", ["status", "reason"], registry=self.registry
        )
        self._seconds = prometheus_client.Histogram(
            "billing_gateway_seconds", "Time to the answer.", buckets=_SECONDS, registry=self.registry
        )

    def answered(self, status: int, reason: str, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(str(status), reason).inc()
        self._seconds.observe(seconds)


class _Server(uvicorn.Server):
    """A second uvicorn server, which leaves the signals to the first server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def told(metrics: Metrics, host: str, port: int) -> AsyncIterator[int]:
    """Answer metrics on every path during the context, and yield the port. Raises OSError if it cannot listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        server = _Server(
            uvicorn.Config(
                prometheus_client.make_asgi_app(metrics.registry),
                http="h11",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_graceful_shutdown=STOP_SECONDS_MAX,
            )
        )
        running = asyncio.create_task(server.serve(sockets=[listener]))
        bound: int = listener.getsockname()[1]
        try:
            yield bound
        finally:
            server.should_exit = True
            await running
