"""Metrics of `serve --workers N`: the parent asks its workers, and adds a label that names the worker."""

import asyncio
from collections.abc import Iterable, Sequence

import httpx
import prometheus_client
from prometheus_client import parser, registry
from prometheus_client.metrics_core import Metric
from starlette.types import ASGIApp

from billing_svc.platform import settings
from billing_svc.platform.monitoring import http_port

# The workers are on this machine; a worker that does not answer is starting or hangs.
ANSWER_SECONDS_MAX = 2.0
_LOOPBACK = "127.0.0.1"


def addresses(listen: str, count: int) -> Sequence[str]:
    """Return the workers' addresses: loopback, on the ports after the parent's. Raises SettingsError."""
    _, port = settings.host_and_port("BILLING_MONITORING_LISTEN", listen)
    if not 0 < port <= settings.PORT_MAX - count:
        raise settings.SettingsError(
            f"BILLING_MONITORING_LISTEN: {listen}: --workers {count} needs a port with {count} more after it"
        )
    return [f"{_LOOPBACK}:{port + 1 + number}" for number in range(count)]


def app(workers: Sequence[str]) -> ASGIApp:
    """Return the parent's application. It is ready if any worker is ready: the shared port is then answered."""

    async def metrics() -> bytes:
        texts = await _ask(workers, "/metrics")
        gathered = registry.CollectorRegistry()
        gathered.register(_Gathered(texts))
        return prometheus_client.generate_latest(gathered)

    async def is_ready() -> bool:
        return any(text is not None for text in await _ask(workers, "/readyz"))

    return http_port.app(metrics, is_ready)


class _Gathered(registry.Collector):
    """The workers' metrics, each with the label `worker`."""

    def __init__(self, texts: Sequence[str | None]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Return every metric of every worker that answered."""
        up = Metric("billing_worker_process_up", "1 if the worker's process answers.", "gauge")
        merged = {up.name: up}
        for number, text in enumerate(self._texts):
            label = {"worker": str(number)}
            up.add_sample(up.name, label, int(text is not None))
            for metric in parser.text_string_to_metric_families(text or ""):
                known = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    known.add_sample(sample.name, sample.labels | label, sample.value)
        return merged.values()


async def _ask(workers: Sequence[str], path: str) -> Sequence[str | None]:
    """Return each worker's answer; None if a worker did not answer or the status is not 2xx."""
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS_MAX) as client:
        return await asyncio.gather(*(_ask_one(client, f"http://{worker}{path}") for worker in workers))


async def _ask_one(client: httpx.AsyncClient, url: str) -> str | None:
    try:
        response = await client.get(url)
    except httpx.HTTPError:
        return None
    return response.text if response.is_success else None
