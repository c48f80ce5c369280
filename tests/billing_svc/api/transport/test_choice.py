"""Which transport a process gets: the one that it asked for, unless gRPC's private interface is not as it was."""

import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints
from structlog.testing import capture_logs

from billing.v1 import quota_pb2
from billing_svc.api.transport import aio, choice, fast
from tests.billing_svc import processes

BROKEN = """
from grpc._cython import cygrpc
del cygrpc.ReceiveMessageOperation
"""


def _warned() -> str:
    """Return what is said of an interface on which `fast` cannot be had."""
    with capture_logs() as lines:
        assert choice.server_class("fast") is aio.AioServer
    (line,) = lines
    assert (line["event"], line["log_level"], line["instead"]) == ("fast_transport_unusable", "warning", "aio")
    assert line["grpcio"] == grpc.__version__
    return str(line["differences"])


def test_each_is_had_by_its_name() -> None:
    with capture_logs() as lines:
        assert choice.server_class("fast") is fast.FastServer
        assert choice.server_class("aio") is aio.AioServer
    assert lines == []


@pytest.mark.parametrize("name", ["ReceiveMessageOperation", "CompletionQueue", "RequestCallEvent", "auth_context"])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(cygrpc, name)
    assert f"grpc._cython.cygrpc.{name}" in _warned()


def test_a_function_that_takes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cygrpc, "auth_context", lambda call, _more: call)
    assert _warned() == "grpc._cython.cygrpc.auth_context"


def test_what_is_made_in_another_way_is_found_by_making_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed:
        def __init__(self, message: bytes) -> None:
            pass

    monkeypatch.setattr(cygrpc, "SendMessageOperation", Changed)
    assert "TypeError" in _warned()


def test_a_server_that_lives_otherwise_is_found_by_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(cygrpc.Server):  # type: ignore[misc]  # has no type hints
        def request_call(self, call_queue: Any, server_queue: Any, tag: object) -> None:  # noqa: ANN401
            super().request_call(call_queue, server_queue, (tag,))

    monkeypatch.setattr(cygrpc, "Server", Changed)
    assert "came in place of" in _warned()


def test_without_the_module_the_public_interface_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc._cython.cygrpc", None)
    assert _warned().startswith("grpc._cython.cygrpc: ")


@pytest.mark.usefixtures("published_catalog")
async def test_a_process_that_falls_back_answers(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    settings = {"BILLING_TRANSPORT": "fast", "PYTHONPATH": f"{processes.SRC}:{tmp_path}"}
    async with processes.servers(database_url, tmp_path, 1, settings) as (one,), one.channel() as channel:
        check = quota_pb2.CheckQuotaRequest(account_id="org_1", meter="runs")
        assert (await processes.quota_stub(channel).CheckQuota(check, metadata=processes.METADATA)).used == 0
        assert one.said().count('"fast_transport_unusable"') == 1
        assert "grpc._cython.cygrpc.ReceiveMessageOperation" in one.said()
