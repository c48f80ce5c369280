"""The commands as processes: what they print, and how they refuse."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from billing_svc.catalog import loading, versions
from billing_svc.platform import clock
from billing_svc.platform.database import transactions
from tests import ports
from tests.billing_svc.programs.commands.terminal import NYQST, ROOT, SECONDS_MAX, complete, environment, refusal, run


async def publish(runner: transactions.Transactions) -> None:
    catalog = loading.load_file(NYQST)
    await runner.run(lambda conn: versions.publish(conn, catalog, "test", clock.Clock().now()))


def test_the_command_line_imports_nothing_that_takes_time() -> None:
    script = "import sys; from billing_svc import __main__; print(*sys.modules)"

    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=20, check=True
    )

    assert not {"alembic", "grpc", "pydantic", "sqlalchemy", "stripe", "structlog"} & set(ended.stdout.split())


def test_help_names_every_command() -> None:
    shown = run("--help").stdout

    for command in ("serve", "worker", "migrate", "dev", "catalog"):
        assert command in shown


def test_the_version_is_shown() -> None:
    assert run("--version").stdout.startswith("billing-svc ")


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_missing_settings_are_named(command: str) -> None:
    sentence = refusal(command, code=2)

    assert "DATABASE_URL is not set" in sentence
    assert "STRIPE_API_KEY is not set" in sentence


def test_a_database_url_that_is_none_is_not_quoted() -> None:
    # The last one's password has characters that a URL must escape, so that a part of it is taken for the port.
    passwords = ("hunter2", "mysql://billing:hunter2@127.0.0.1/billing", "postgresql://billing:p@x:hunter2@127.0.0.1/b")
    for wrong in passwords:
        sentence = refusal("migrate", env=environment(DATABASE_URL=wrong), code=2)

        assert "DATABASE_URL" in sentence
        assert "hunter2" not in sentence


def test_a_database_that_is_away_is_one_sentence_without_the_password() -> None:
    url = f"postgresql://billing:hunter2@127.0.0.1:{ports.free_port()}/billing"

    sentence = refusal("migrate", env=environment(DATABASE_URL=url))

    assert "refused" in sentence
    assert "hunter2" not in sentence


def test_migrate_needs_the_database_alone_and_may_be_repeated(empty_database_url: str) -> None:
    first, second = (run("migrate", env=environment(DATABASE_URL=empty_database_url)) for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == second.stdout


@pytest.mark.parametrize("command", [["serve"], ["worker"], ["catalog", "apply", str(NYQST)]])
def test_an_old_schema_is_refused(empty_database_url: str, command: list[str]) -> None:
    assert "billing-svc migrate" in refusal(*command, env=complete(empty_database_url))


def test_serving_without_a_catalog_is_refused(database_url: str) -> None:
    assert "billing-svc catalog apply" in refusal("serve", env=complete(database_url))


async def test_an_occupied_address_is_one_sentence(database_url: str, transactions: transactions.Transactions) -> None:
    await publish(transactions)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        occupied = complete(database_url) | {"BILLING_LISTEN": f"127.0.0.1:{listener.getsockname()[1]}"}

        assert "BILLING_LISTEN" in refusal("serve", env=occupied)


@pytest.mark.parametrize(("command", "event"), [("serve", "serving"), ("worker", "working")])
async def test_a_process_says_when_it_runs_and_ends_in_order(
    database_url: str, transactions: transactions.Transactions, command: str, event: str
) -> None:
    await publish(transactions)
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this test's loop
        [sys.executable, "-m", "billing_svc", command],
        env=complete(database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == event:
                break
        process.send_signal(signal.SIGTERM)
        out, rest = process.communicate(timeout=SECONDS_MAX)
    finally:
        process.kill()

    # Of a server that stops, gRPC's core may write a line of its own.
    lines += [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
    assert process.returncode == 0
    assert event in [line["event"] for line in lines]
    # stdout is for results, and a server has none.
    assert out == ""


@pytest.mark.parametrize("name", ["nyqst", "kalshibook", "orgs", "agentplatform", "automation"])
def test_a_good_catalog_is_shown_as_a_table(name: str) -> None:
    file = ROOT / "catalogs" / f"{name}.yaml"

    ended = run("catalog", "check", str(file))

    assert ended.returncode == 0, ended.stderr
    for plan in loading.load_file(file).plans:
        assert plan in ended.stdout


def test_all_that_is_wrong_with_a_catalog_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(NYQST.read_text().replace("beyond: deny", "beyond: sometimes"))

    ended = run("catalog", "check", str(file))

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len([line for line in ended.stderr.splitlines() if line.startswith(f"{file}:")]) >= 2
    assert "Traceback" not in ended.stderr


def test_a_wrong_catalog_is_not_applied(tmp_path: Path) -> None:
    file = tmp_path / "missing.yaml"

    assert "cannot be read" in refusal("catalog", "apply", str(file))
