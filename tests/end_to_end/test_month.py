"""A month in a minute, with the real processes: the recorded usage is charged exactly, whatever fails."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from billing.v1 import decision_pb2, invoice_pb2, subscription_pb2
from billing_svc.programs.dev import options, programs
from tests.end_to_end import dev_process, python_client, stripes_side

pytestmark = pytest.mark.long

T = TypeVar("T")

HOUR, DAY = 3600, 86_400
RUNS = 260
# $20, and $0.50 for each of the 60 runs beyond the 200.
OWED = Decimal("20.00") + 60 * Decimal("0.50")
PATIENCE_SECONDS = 30
POLL_SECONDS = 0.05
# How many faults occur depends on the number of calls in the time; a usual run has far more.
STRIKES_MIN = 12
# `dev` ends if a part dies five times within half a minute.
KILL_CHANCE = 0.15
KILLS_MAX, KILLS_WITHIN_SECONDS = 4, 30
SEED = int(os.environ.get("BILLING_MONTH_SEED", "20261120"))

FAULTS = [
    {"kind": "delay", "seconds": 0.2, "probability": 0.3, "path": "/v1/*"},
    {"kind": "rate_limited", "probability": 0.06, "path": "/v1/*"},
    {"kind": "rate_limited", "probability": 0.06, "path": "/v1/*", "should_retry": True},
    {"kind": "conflict", "probability": 0.06, "path": "/v1/*"},
    {"kind": "unavailable", "probability": 0.06, "path": "/v1/*"},
    {"kind": "broken", "probability": 0.05, "path": "/v1/*"},
    {"kind": "broken", "probability": 0.05, "path": "/v1/*", "does_it": True},
    {"kind": "cut", "probability": 0.06, "path": "/v1/*"},
    {"kind": "lost_answer", "seconds": 0.1, "probability": 0.08, "path": "/v1/*"},
    {"kind": "webhook_delay", "seconds": 1.0, "probability": 0.2},
    {"kind": "webhook_duplicate", "probability": 0.3},
    {"kind": "webhook_reorder", "seconds": 1.0, "probability": 0.3},
    {"kind": "webhook_drop", "probability": 0.2},
]


@pytest.fixture(scope="module")
def running() -> Iterator[dev_process.DevProcess]:
    """Run a `dev` whose clock may be moved."""
    with tempfile.TemporaryDirectory(prefix="billing-svc-dev-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # run by root, Postgres is another user, who passes through
        with dev_process.ended_in_any_case(dev_process.DevProcess(folder / "data")) as dev:
            dev.start()
            dev.await_ready()
            yield dev
            dev.end(signal.SIGINT)


@dataclass
class Month:
    """A month of an account."""

    dev: dev_process.DevProcess
    client: python_client.Client
    sandbox: stripes_side.Sandbox
    account: str
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))  # noqa: S311 - repeatable, not secret
    recorded: int = 0
    killed: dict[int, float] = field(default_factory=dict)

    # Callers.

    def subscribe(self) -> subscription_pb2.Subscription:
        request = subscription_pb2.CreateCheckoutRequest(account_id=self.account, plan="pro")
        self.sandbox.pay(
            self.persistently(lambda: self.client.call(self.client.subscriptions.CreateCheckout, request)).url
        )
        return self.until(self.subscription, lambda found: found.plan == "pro", "the plan is not in force")

    def subscription(self) -> subscription_pb2.Subscription:
        request = subscription_pb2.GetSubscriptionRequest(account_id=self.account)
        return self.client.call(self.client.subscriptions.GetSubscription, request).subscription

    def invoices(self) -> list[invoice_pb2.Invoice]:
        """Return what `ListInvoices` returns, oldest first."""
        request = subscription_pb2.ListInvoicesRequest(account_id=self.account, page_size=100)
        return list(self.client.call(self.client.subscriptions.ListInvoices, request).invoices)[::-1]

    def run(self) -> float:
        """Check and record a run; returns the longer of the two calls, in seconds."""
        began = time.monotonic()
        check = self.client.check(self.account)
        checked = time.monotonic()
        assert check.decision == decision_pb2.DECISION_ALLOWED
        assert check.used == self.recorded
        beyond = check.reason == decision_pb2.DECISION_REASON_OVERAGE
        assert beyond == (self.recorded >= 200)
        self.recorded += 1
        answer = self.client.record(self.account, uuid.uuid4().hex)
        assert not answer.duplicate
        assert (answer.used, answer.billable) == (self.recorded, int(beyond))
        return max(checked - began, time.monotonic() - checked)

    def persistently(self, call: Callable[[], T]) -> T:
        """Repeat a call as long as it is UNAVAILABLE, as the contract tells callers to do."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)

    def until(self, look: Callable[[], T], holds: Callable[[T], bool], why: str) -> T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds(found := look()):
            assert time.monotonic() < deadline, f"{why} after {PATIENCE_SECONDS} s: {found}"
            time.sleep(POLL_SECONDS)
        return found

    # The worker.

    def kill_worker(self) -> None:
        """Kill the worker at any point of its work, but not too often; `dev` starts it again."""
        lately = [at for at in self.killed.values() if time.monotonic() < at + KILLS_WITHIN_SECONDS]
        pid = self.dev.pid_of("worker")
        if pid not in self.killed and len(lately) < KILLS_MAX:
            dev_process.kill(pid)
            self.killed[pid] = time.monotonic()

    def open_reports(self) -> list[tuple[Any, ...]]:
        """Return the reports, with billable units, that are not at Stripe yet."""
        with psycopg.connect(self.dev.database) as connection:
            unsealed = (
                "SELECT meter, billable - sealed FROM usage_counters WHERE account_id = %s AND billable <> sealed"
            )
            unsent = (
                "SELECT meter, to_units - from_units, state, error FROM usage_reports"
                " WHERE account_id = %s AND state NOT IN ('sent', 'invoiced', 'void')"
            )
            return [*connection.execute(unsealed, [self.account]), *connection.execute(unsent, [self.account])]

    def reconcile(self) -> str:
        """Run the command, with the environment that `dev` gives its parts; returns its output."""
        found = psycopg.conninfo.conninfo_to_dict(self.dev.database)
        url = f"postgresql://{found['user']}:{found['password']}@{found['host']}:{found['port']}/{found['dbname']}"
        environment = programs.environment(options.Ports(*self.dev.ports), url, self.dev.data_dir, None)
        ended = subprocess.run(
            [sys.executable, "-m", "billing_svc", "reconcile", "--account", self.account],
            cwd=dev_process.ROOT,
            env={**dev_process.environment(), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ended.stdout + ended.stderr

    # Stripe.

    def at_stripe(self) -> list[Decimal]:
        """Return the totals of the customer's invoices, oldest first."""
        (customer,) = [
            one for one in self.sandbox.all("/v1/customers") if one["metadata"].get("account_id") == self.account
        ]
        return [Decimal(one["total"]) / 100 for one in self.sandbox.all("/v1/invoices", customer=customer["id"])]

    def told(self) -> list[Decimal]:
        return [Decimal(one.total.amount) for one in self.invoices()]


@pytest.fixture
def month(running: dev_process.DevProcess, request: pytest.FixtureRequest) -> Iterator[Month]:
    with grpc.insecure_channel(running.grpc, python_client.CHANNEL_OPTIONS) as channel:
        sandbox = stripes_side.Sandbox(running)
        yield Month(running, python_client.Client(channel), sandbox, f"org_{request.node.name}")
        sandbox.control("DELETE", "faults")
        sandbox.http.close()


def test_a_month_of_260_runs(month: Month) -> None:
    month.subscribe()
    for _ in range(10):
        for _ in range(RUNS // 10):
            month.run()
        month.sandbox.advance(int(2.5 * DAY))
    told = month.sandbox.advance_by_command("8d")
    assert "renews" in told
    assert "finalises" in told
    # The period's usage is on the invoice with the next period's price.
    assert month.at_stripe() == [Decimal(20), OWED]
    month.until(month.told, lambda found: found == [Decimal(20), OWED], "ListInvoices tells otherwise")
    (line,) = [line for line in month.invoices()[1].lines if line.meter == "runs"]
    assert (line.quantity, line.amount.amount) == (60, "30.00")
    assert month.reconcile().startswith("what differs from Stripe: nothing\n")


def test_a_month_costs_the_same_with_the_worker_killed_and_every_fault(month: Month) -> None:
    seeded = [{**fault, "seed": SEED + number} for number, fault in enumerate(FAULTS)]
    month.sandbox.control("POST", "faults", seeded)
    month.subscribe()
    for _ in range(200):
        month.run()
    # Every other day some overage is sent to Stripe, while the worker may be killed at any moment.
    for _ in range(10):
        for _ in range(6):
            month.run()
        month.sandbox.advance(2 * DAY, delivery_seconds=0.5)
        for _ in range(6):
            time.sleep(0.1)
            if month.chance.random() < KILL_CHANCE:
                month.kill_worker()
    # To the period's end, not to its final invoice, which is an hour later.
    month.sandbox.advance(month.subscription().period_end.seconds - now_at(month) + 1)
    month.kill_worker()
    final_at = now_at(month) + HOUR
    while month.open_reports():
        assert now_at(month) < final_at - 10 * 60, month.open_reports()
        month.sandbox.step(60, delivery_seconds=1.0)
        time.sleep(0.5)
    month.kill_worker()
    month.sandbox.advance(2 * HOUR)
    assert sum(fault["struck"] for fault in month.sandbox.control("GET", "faults")) >= STRIKES_MIN
    assert len(month.killed) >= 2
    month.sandbox.control("DELETE", "faults")
    assert month.at_stripe() == [Decimal(20), OWED]
    month.until(month.told, lambda found: found == [Decimal(20), OWED], "ListInvoices tells otherwise")
    assert month.reconcile().startswith("what differs from Stripe: nothing\n")


def test_a_day_without_stripe_across_the_period_s_end_charges_each_unit_once(month: Month) -> None:
    """Checks and records continue, a checkout is refused for now, and everything is charged once afterwards."""
    ends = month.subscribe().period_end.seconds
    before = [month.run() for _ in range(205)]
    month.sandbox.advance(ends - now_at(month) - 12 * HOUR)
    month.until(month.open_reports, lambda found: not found, "not sent")

    month.sandbox.control("POST", "faults", {"kind": "away"})
    during = []
    for _ in range(12):
        # Beyond the included units, one unit an hour; the last of them at the period's end.
        during.append(month.run())
        month.sandbox.advance(HOUR)
    month.recorded = 0
    for _ in range(12):
        month.sandbox.advance(HOUR, delivery_seconds=0)
        during.append(month.run())
    assert sorted(during)[len(during) // 2] < 5 * sorted(before)[len(before) // 2] + 0.01
    assert max(during) < 2 * max(before) + 0.5
    refusal = refused_checkout(month, f"{month.account}_other")
    assert refusal == (grpc.StatusCode.UNAVAILABLE, True)
    month.sandbox.control("DELETE", "faults")

    # Usage that the invoice lacks, because it was final before Stripe was back, is on the next invoice.
    def is_settled(_happened: object = None) -> None:
        month.until(month.open_reports, lambda found: not found, "not at Stripe")

    month.sandbox.advance(HOUR, is_settled)
    assert month.at_stripe() == [Decimal(20), Decimal(20) + 5 * Decimal("0.50")]
    month.sandbox.advance(32 * DAY, is_settled)
    told = [Decimal(20), Decimal(20) + 5 * Decimal("0.50"), Decimal(20) + 12 * Decimal("0.50")]
    assert month.at_stripe() == told
    month.until(month.told, lambda found: found == told, "ListInvoices tells otherwise")
    assert month.reconcile().startswith("what differs from Stripe: nothing\n")


def now_at(month: Month) -> int:
    return int(month.sandbox.control("GET", "clock")["now"])


def refused_checkout(month: Month, account: str) -> tuple[grpc.StatusCode, bool]:
    """Return the status code of a refused checkout, and whether the error says when to repeat."""
    request = subscription_pb2.CreateCheckoutRequest(account_id=account, plan="pro")
    with pytest.raises(grpc.RpcError) as caught:
        month.client.call(month.client.subscriptions.CreateCheckout, request)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # a call too
    names = {detail.TypeName() for detail in status.details}
    return caught.value.code(), error_details_pb2.RetryInfo.DESCRIPTOR.full_name in names
