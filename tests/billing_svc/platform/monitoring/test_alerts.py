"""The example alert rules speak of metrics that there are, and each says what to do."""

import re
from pathlib import Path
from typing import Any

import prometheus_client
from ruamel.yaml import YAML

from billing_svc.platform.database import transactions
from billing_svc.platform.monitoring import metrics, store
from webhook_gateway import metrics as gateway_metrics

ROOT = Path(__file__).resolve().parents[4]


def rules() -> list[dict[str, Any]]:
    loaded = YAML(typ="safe").load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def exposed() -> set[str]:
    """Every name that Prometheus stores, of the three programs."""
    server, worker, gateway = metrics.ServerMetrics(), metrics.Worker(), gateway_metrics.Metrics()
    server.calls.of("/a")("OK", "", 0.1)
    server.batch("checks", lambda: 0)
    server.decided([(True, "NONE")])
    server.watch_callers(lambda: False)
    metrics.watch_pool(server.registry, lambda: 0, 1)
    metrics.watch_readiness(server.registry, lambda: True)
    worker.failed("a")
    worker.succeeded("a")
    worker.backlog("a", waiting=0, failed=0, lag_seconds=0)
    worker.found("a", 0)
    requests = metrics.StripeRequests(worker.registry)
    requests.sent("GET", "/v1/invoices")
    requests.refused("GET", "/v1/invoices", 400, "parameter_missing")
    gateway.answered(200, "stored", 0.1)
    texts = (prometheus_client.generate_latest(one.registry).decode() for one in (server, worker, gateway))
    return {match for text in texts for match in re.findall(r"^(billing_\w+)", text, re.MULTILINE)}


def test_every_metric_of_a_rule_exists() -> None:
    known = exposed()
    for rule in rules():
        # What stands in quotes is a label's value.
        named = set(re.findall(r"billing_\w+", re.sub(r'"[^"]*"', "", rule["expr"])))
        assert named <= known, rule["alert"]


async def test_every_queue_has_a_rule_for_its_lag(transactions: transactions.Transactions) -> None:
    watched = " ".join(rule["expr"] for rule in rules())
    for backlog in await transactions.read(store.backlogs):
        assert f'billing_lag_seconds{{queue="{backlog.queue}"}}' in watched, backlog.queue


def test_every_rule_says_what_is_wrong_how_bad_it_is_and_what_to_do() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) > 10
    for rule in found:
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert all(rule["annotations"][name] for name in ("summary", "action")), rule["alert"]


def test_the_operations_page_knows_every_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in page] == []
