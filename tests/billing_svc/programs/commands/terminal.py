"""Commands as people run them: processes with an environment, an output and an exit status."""

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests import ports

ROOT = Path(__file__).resolve().parents[4]
NYQST = ROOT / "catalogs" / "nyqst.yaml"
# A start imports everything; more than this and it hangs.
SECONDS_MAX = 40
FOREIGN = ("BILLING_", "DATABASE_URL", "GATEWAY_", "STRIPE_")


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return kept | {"PYTHONPATH": str(ROOT / "src")} | more


def complete(database_url: str, **more: str) -> dict[str, str]:
    """Return all that `serve` needs."""
    return environment(
        DATABASE_URL=database_url,
        STRIPE_API_KEY="sk_test_cli",
        STRIPE_API_BASE="http://127.0.0.1:9",
        BILLING_DEV="1",
        BILLING_LISTEN=f"127.0.0.1:{ports.free_port()}",
        BILLING_CHECKOUT_SUCCESS_URL="https://app.example.com/paid",
        BILLING_CHECKOUT_CANCEL_URL="https://app.example.com/plans",
        **more,
    )


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `billing-svc`, in a fork of a process that has imported its modules."""
    command = ["billing-svc", *arguments]
    with tempfile.NamedTemporaryFile("r+") as out, tempfile.NamedTemporaryFile("r+") as err, _ONE_AT_A_TIME:
        server = _forking()
        assert server.stdin is not None
        assert server.stdout is not None
        asked = {
            "arguments": arguments,
            "cwd": str(ROOT),
            "env": environment() if env is None else env,
            "stdout": out.name,
            "stderr": err.name,
        }
        print(json.dumps(asked), file=server.stdin, flush=True)
        if not select.select([server.stdout], [], [], SECONDS_MAX)[0]:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            _forking.cache_clear()
            raise subprocess.TimeoutExpired(command, SECONDS_MAX)
        return subprocess.CompletedProcess(command, int(server.stdout.readline()), out.read(), err.read())


_ONE_AT_A_TIME = threading.Lock()


@functools.cache
def _forking() -> subprocess.Popen[str]:
    """Start the process that forks; it ends with this process, which holds its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.billing_svc.programs.commands.forks"],
        cwd=ROOT,
        # The commands' log sets this before they import gRPC, which here is imported already.
        env=environment(GRPC_VERBOSITY="NONE"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(process.communicate)
    return process


def refusal(*arguments: str, env: dict[str, str] | None = None, code: int = 1) -> str:
    """Return the one sentence with which a command ends."""
    ended = run(*arguments, env=env)
    sentences = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert (ended.returncode, len(sentences)) == (code, 1), ended.stderr
    assert sentences[0].startswith("billing-svc: ")
    return sentences[0]
