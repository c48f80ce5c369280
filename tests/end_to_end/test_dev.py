"""`billing-svc dev` from outside: its start, the failures that it survives, and that no process is left after it."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from billing.v1 import quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.end_to_end import dev_process

TOKEN = (("authorization", "Bearer dev-token"),)
CALL_SECONDS_MAX = 20
# With its own connections: a shared connection to a killed server may not be known to be dead yet.
CHANNEL = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="billing-svc-dev-") as name:
        path = Path(name)
        path.chmod(0o711)  # started by root, Postgres runs as another user, who needs to pass through
        yield path


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[dev_process.DevProcess]:
    with dev_process.ended_in_any_case(dev_process.DevProcess(folder / "running")) as dev:
        dev.start()
        dev.await_ready()
        yield dev
        dev.end(signal.SIGTERM)


def check(dev: dev_process.DevProcess, account: str) -> quota_pb2.CheckQuotaResponse:
    with grpc.insecure_channel(dev.grpc, CHANNEL) as channel:
        request = quota_pb2.CheckQuotaRequest(account_id=account, meter="runs")
        return quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(
            request, timeout=CALL_SECONDS_MAX, metadata=TOKEN, wait_for_ready=True
        )


def record(dev: dev_process.DevProcess, account: str, event_id: str) -> None:
    with grpc.insecure_channel(dev.grpc, CHANNEL) as channel:
        request = usage_pb2.RecordUsageRequest(account_id=account, event_id=event_id, meter="runs", quantity=1)
        usage_pb2_grpc.UsageServiceStub(channel).RecordUsage(request, timeout=CALL_SECONDS_MAX, metadata=TOKEN)


def refused(command: list[str], **environment: str) -> str:
    """Return the message with which a start is refused."""
    ended = subprocess.run(
        command,
        cwd=dev_process.ROOT,
        env=dev_process.environment(**environment),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert not ended.stdout
    return ended.stderr


def test_commands_work_beside_a_running_dev(running: dev_process.DevProcess) -> None:
    file = running.data_dir / "environment"
    assert file.stat().st_mode & 0o777 == 0o600
    ended = subprocess.run(
        ["/bin/sh", "-c", f". '{file}' && '{sys.executable}' -m billing_svc doctor"],
        cwd=dev_process.ROOT,
        env=dev_process.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "catalog at Stripe" in ended.stdout


def test_the_first_call_that_dev_prints_works(running: dev_process.DevProcess) -> None:
    first = next(number for number, line in enumerate(running.lines) if line.endswith(" - <<'END'\n"))
    last = running.lines.index("END\n", first)

    ended = subprocess.run(
        ["/bin/sh"],
        input="".join(running.lines[first : last + 1]),
        cwd=dev_process.ROOT,
        env=dev_process.environment(),
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS_MAX,
        check=False,
    )

    assert "DECISION_ALLOWED" in ended.stdout, ended.stderr


def test_a_second_dev_on_the_same_folder_is_refused(running: dev_process.DevProcess) -> None:
    assert "another `billing-svc dev` runs on" in refused(running.command())


def test_a_port_in_use_is_named_with_its_option(running: dev_process.DevProcess, folder: Path) -> None:
    other = dev_process.DevProcess(folder / "other")
    other.ports[1] = running.ports[1]

    sentence = refused(other.command())

    assert str(running.ports[1]) in sentence
    assert "--gateway-port" in sentence


@pytest.mark.parametrize("part", ["server", "postgres"])
def test_a_part_that_dies_comes_back(running: dev_process.DevProcess, part: str) -> None:
    account = f"org_{part}"
    record(running, account, "before")
    killed = running.pid_of(part)

    dev_process.kill(killed)
    running.await_line(f"{part} .*starting it again")
    running.await_line(rf"  {part} answers after .* \(process (?!{killed}\))")

    assert check(running, account).used == 1


def advance(dev: dev_process.DevProcess, duration: str) -> str:
    """Move the clocks by the command, and return its output."""
    port = str(dev.ports[2])
    ended = subprocess.run(
        [sys.executable, "-m", "billing_svc", "sandbox", "advance", duration, "--sandbox-port", port, "--pause", "0"],
        cwd=dev_process.ROOT,
        env=dev_process.environment(),
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS_MAX,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_stripes_clock_and_ours_move_together(running: dev_process.DevProcess) -> None:
    record(running, "org_moved", "before")
    ended = check(running, "org_moved").period_end.ToDatetime()

    told = advance(running, "35d")
    moved = check(running, "org_moved")

    assert told.startswith("it is ")
    assert moved.used == 0, "a new month"
    assert moved.period_start.ToDatetime() >= ended
    # A part that is started again has the same time.
    killed = running.pid_of("server")
    dev_process.kill(killed)
    running.await_line(rf"  server answers after .* \(process (?!{killed}\))")
    assert check(running, "org_moved").period_start == moved.period_start


def test_a_kill_leaves_nothing_running_and_the_next_start_keeps_the_data(folder: Path) -> None:
    with dev_process.ended_in_any_case(dev_process.DevProcess(folder / "killed")) as dev:
        dev.start()
        dev.await_ready()
        record(dev, "org_kept", "event")
        parts = dev.parts()
        assert len(parts) >= 5

        dev.end(signal.SIGKILL)
        dev_process.await_gone(parts)
        dev.start()
        dev.await_ready()

        assert check(dev, "org_kept").used == 1
        parts = dev.parts()
        assert dev.end(signal.SIGINT) == 0
        dev_process.await_gone(parts, seconds=0.0)
        assert all(dev_process.is_free(port) for port in dev.ports)


def test_an_interrupt_while_dev_sets_up_ends_it_too(folder: Path) -> None:
    with dev_process.ended_in_any_case(dev_process.DevProcess(folder / "interrupted")) as dev:
        dev.start()
        dev.await_line("  postgres answers")
        parts = dev.parts()

        assert dev.end(signal.SIGINT) == 0
        dev_process.await_gone(parts, seconds=0.0)


@pytest.mark.parametrize("key", ["sk_live_1", "rk_live_1"])
def test_dev_does_not_start_beside_a_live_key(folder: Path, key: str) -> None:
    sentence = refused(dev_process.DevProcess(folder / "live").command(), STRIPE_API_KEY=key)

    assert "live key" in sentence
    assert key not in sentence
    assert not (folder / "live").exists()


def test_a_test_key_of_stripes_needs_the_webhooks_secret(folder: Path) -> None:
    sentence = refused(dev_process.DevProcess(folder / "test").command(), STRIPE_API_KEY="sk_test_51abc")

    assert "STRIPE_WEBHOOK_SECRET" in sentence
    assert "51abc" not in sentence


def test_a_reset_spares_a_folder_that_is_not_its_own(folder: Path) -> None:
    precious = folder / "precious" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")

    sentence = refused(dev_process.DevProcess(precious.parent).command("--reset"))

    assert "did not create" in sentence
    assert [entry.name for entry in precious.parent.iterdir()] == ["thesis.tex"]
