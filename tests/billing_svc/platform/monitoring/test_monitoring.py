"""What operators see of real processes: metrics, liveness, readiness."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import parser

from billing.v1 import quota_pb2, usage_pb2
from billing_svc.platform import clock
from billing_svc.platform import settings as settings_module
from billing_svc.platform.monitoring import http_port, metrics, worker_metrics
from tests import ports
from tests.billing_svc import processes, refusals

SECONDS_MAX = 60


class Scrape:
    """The samples of one answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for one in parser.text_string_to_metric_families(text) for sample in one.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum over all samples with these labels."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        assert found, f"no {name} {labels}"
        return sum(found)


async def scrape(port: int) -> Scrape:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return Scrape(answer.text)


async def status(port: int, path: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code
        except httpx.TransportError:
            return 0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.05)


@pytest.mark.usefixtures("published_catalog")
async def test_a_server_counts_calls_decisions_and_batches(database_url: str, tmp_path: Path) -> None:
    port = ports.free_port()
    more = {"BILLING_MONITORING_LISTEN": f"127.0.0.1:{port}"}
    async with processes.servers(database_url, tmp_path, 1, more) as (one,), one.channel() as channel:
        quota, usage = processes.quota_stub(channel), processes.usage_stub(channel)
        check = quota_pb2.CheckQuotaRequest(account_id="org_secret", meter="runs", quantity=5)
        for _ in range(3):
            await quota.CheckQuota(check, metadata=processes.METADATA)
        check.quantity = 6
        await quota.CheckQuota(check, metadata=processes.METADATA)
        await refusals.refused(usage.RecordUsage(usage_pb2.RecordUsageRequest(account_id="org_secret")))
        for n, minutes in enumerate((0, 60, 179, 180, 180, 185)):
            event = usage_pb2.RecordUsageRequest(account_id="org_secret", event_id=f"event_{n}", meter="runs")
            event.occurred_at.FromDatetime(clock.Clock().now() - timedelta(minutes=minutes))
            await usage.RecordUsage(event, metadata=processes.METADATA)
        assert (await status(port, "/livez"), await status(port, "/readyz")) == (200, 200)
        assert await status(port, "/other") == 404
        seen = await scrape(port)
    method = "/billing.v1.QuotaService/CheckQuota"
    assert seen.value("billing_rpc_calls_total", method=method, code="OK", reason="") == 4
    assert seen.value("billing_rpc_seconds_count", method=method) == 4
    assert seen.value("billing_rpc_calls_total", code="UNAUTHENTICATED", reason="UNAUTHENTICATED") == 1
    assert seen.value("billing_decisions_total", decision="allowed", reason="NONE") == 3
    assert seen.value("billing_decisions_total", decision="denied", reason="QUOTA_EXHAUSTED") == 1
    late = {sample.labels["hours"]: sample.value for sample in seen.samples if "whole_hours_late" in sample.name}
    assert late == {"1": 1, "3": 2}
    assert seen.value("billing_batch_size_sum", batch="checks") == 4
    assert 1 <= seen.value("billing_batch_wait_seconds_count", batch="checks") <= 4
    assert seen.value("billing_batch_queue", batch="events") == 0
    assert seen.value("billing_database_connections_max") == 10
    # The one that stays lent between calls.
    assert seen.value("billing_database_connections_in_use") == 1
    assert seen.value("billing_ready") == 1
    assert seen.value("billing_callers_stale") == 0
    assert seen.value("process_resident_memory_bytes") > 0
    # Nothing that grows with accounts or callers.
    assert not any("org_secret" in value for sample in seen.samples for value in sample.labels.values())


@contextlib.asynccontextmanager
async def program(database_url: str, log: Path, port: int, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = os.environ | {
        "PYTHONPATH": str(processes.SRC),
        "DATABASE_URL": database_url,
        "BILLING_DEV": "1",
        "BILLING_LISTEN": f"127.0.0.1:{ports.free_port()}",
        "BILLING_MONITORING_LISTEN": f"127.0.0.1:{port}",
        "STRIPE_API_KEY": "sk_test_tests",
        "STRIPE_API_BASE": "http://127.0.0.1:9",
        "BILLING_CHECKOUT_SUCCESS_URL": "https://app.example.com/paid",
        "BILLING_CHECKOUT_CANCEL_URL": "https://app.example.com/plans",
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "billing_svc", *command), env=environment, stderr=output
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(SECONDS_MAX):
            await process.wait()


@pytest.mark.usefixtures("published_catalog")
async def test_a_worker_tells_how_far_it_is_behind(database_url: str, tmp_path: Path) -> None:
    port, log = ports.free_port(), tmp_path / "worker.log"
    async with program(database_url, log, port, "worker") as process:
        await until(lambda: '"working"' in log.read_text())
        async with asyncio.timeout(SECONDS_MAX):
            while 'loop="backlogs"' not in await _text(port):
                pass  # each round is a call
        seen = await scrape(port)
        assert await status(port, "/readyz") == 200
        process.terminate()
        assert await process.wait() == 0
    for queue in ("stripe_events", "usage_reports", "duties"):
        assert seen.value("billing_lag_seconds", queue=queue) == 0
        assert seen.value("billing_backlog", queue=queue, state="waiting") == 0
        assert seen.value("billing_backlog", queue=queue, state="failed") == 0
    assert seen.value("billing_worker_last_success_timestamp_seconds", loop="backlogs") > 0


async def _text(port: int) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over processes")
@pytest.mark.usefixtures("published_catalog")
async def test_several_workers_are_seen_as_one(database_url: str, tmp_path: Path) -> None:
    port, log = ports.free_ports(3), tmp_path / "serve.log"
    async with program(database_url, log, port, "serve", "--workers", "2"):
        await until(lambda: log.read_text().count('"serving"') == 2)
        seen = await scrape(port)
        assert await status(port, "/readyz") == 200
        # Each can be asked by itself.
        assert await status(port + 1, "/metrics") == await status(port + 2, "/metrics") == 200
    assert seen.value("billing_worker_process_up", worker="0") == 1
    assert seen.value("billing_worker_process_up", worker="1") == 1
    assert seen.value("billing_ready") == 2
    assert seen.value("billing_database_connections_max", worker="1") == 10


async def test_workers_that_do_not_answer_leave_the_parent_unready() -> None:
    nobody = [f"127.0.0.1:{ports.free_port()}"]
    async with http_port.answering("127.0.0.1:0", worker_metrics.app(nobody)) as port:
        assert port is not None
        assert await status(port, "/readyz") == 503
        assert (await scrape(port)).value("billing_worker_process_up", worker="0") == 0


def test_the_workers_ports_follow_the_parent_s() -> None:
    assert worker_metrics.addresses("0.0.0.0:9464", 2) == ["127.0.0.1:9465", "127.0.0.1:9466"]
    for listen in ("127.0.0.1:0", "127.0.0.1:65535", "nowhere"):
        with pytest.raises(settings_module.SettingsError, match="BILLING_MONITORING_LISTEN"):
            worker_metrics.addresses(listen, 2)


async def test_a_port_that_is_taken_stops_the_start_with_a_sentence() -> None:
    with http_port._bound("127.0.0.1:0") as taken:  # noqa: SLF001 - as the service does
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(settings_module.SettingsError, match="BILLING_MONITORING_LISTEN"):
            async with http_port.answering(listen, worker_metrics.app([])):
                pass


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = metrics.ServerMetrics(), metrics.ServerMetrics()
    one.calls.of("/a")("OK", "", 0.1)
    assert one.registry.get_sample_value("billing_rpc_calls_total", {"method": "/a", "code": "OK", "reason": ""}) == 1
    assert other.registry.get_sample_value("billing_rpc_calls_total") is None
