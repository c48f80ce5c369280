"""Commands as people run them: processes with an environment, an output and an exit status."""

import os
import subprocess
import sys
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
    return subprocess.run(
        [sys.executable, "-m", "billing_svc", *arguments],
        cwd=ROOT,
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def refusal(*arguments: str, env: dict[str, str] | None = None, code: int = 1) -> str:
    """Return the one sentence with which a command ends."""
    ended = run(*arguments, env=env)
    sentences = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert (ended.returncode, len(sentences)) == (code, 1), ended.stderr
    assert sentences[0].startswith("billing-svc: ")
    return sentences[0]
