"""Every metric of the service, in a registry that each process builds once and passes to the code that counts.

Label values come from fixed sets (methods, codes, reasons, names of batches and loops) and never contain an account, a
caller or a text, so that the number of time series is bounded.
"""

import collections
from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import registry as registries

# A lone check takes about a millisecond; a call longer than the last bucket has exceeded the server's deadline.
_CALL_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Buckets are fine up to 12 ms, twice the longest wait for more calls; a longer wait is for the batch before.
_WAIT_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.5, 2.5)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# A `_created` series would double each metric, only to tell when it was first counted.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Calls:
    """How calls end, and how long they take. Label values are bound once for each method and outcome."""

    def __init__(self, registry: registries.CollectorRegistry) -> None:
        self._calls = prometheus_client.Counter(
            "billing_rpc_calls", "Calls that ended.", ["method", "code", "reason"], registry=registry
        )
        self._seconds = prometheus_client.Histogram(
            "billing_rpc_seconds",
            "Time from a call's start to its end.",
            ["method"],
            buckets=_CALL_SECONDS,
            registry=registry,
        )

    def of(self, method: str) -> Callable[[str, str, float], None]:
        """Return the function that counts a call of a method: `(code, reason, seconds)`."""
        observe = self._seconds.labels(method).observe
        bound: dict[tuple[str, str], Callable[[], None]] = {}

        def count(code: str, reason: str, seconds: float) -> None:
            increase = bound.get((code, reason))
            if increase is None:
                increase = bound[code, reason] = self._calls.labels(method, code, reason).inc
            increase()
            observe(seconds)

        return count


class Batch:
    """A batcher's metrics: size and wait of each batch."""

    def __init__(self, observe_size: Callable[[float], None], observe_wait: Callable[[float], None]) -> None:
        self.observe_size = observe_size
        self.observe_wait = observe_wait


class ServerMetrics:
    """The metrics of a server process."""

    def __init__(self) -> None:
        self.registry = registries.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.calls = Calls(self.registry)
        self._decisions = prometheus_client.Counter(
            "billing_decisions", "Decisions of CheckQuota.", ["decision", "reason"], registry=self.registry
        )
        self._decided: dict[tuple[bool, str], Callable[[float], None]] = {}
        self._whole_hours_late = prometheus_client.Counter(
            "billing_events_whole_hours_late",
            "Usage events whose occurred_at lies whole hours back, as a local time that was sent as UTC does.",
            ["hours"],
            registry=self.registry,
        )
        self._sizes = prometheus_client.Histogram(
            "billing_batch_size",
            "Calls that one batch answered.",
            ["batch"],
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self._waits = prometheus_client.Histogram(
            "billing_batch_wait_seconds",
            "How long a batch's first call waited for the others and for the batch before it.",
            ["batch"],
            buckets=_WAIT_SECONDS,
            registry=self.registry,
        )
        self._queue = prometheus_client.Gauge(
            "billing_batch_queue", "Calls that wait for a batch.", ["batch"], registry=self.registry
        )

    def batch(self, name: str, waiting: Callable[[], int]) -> Batch:
        """Return a batcher's metrics; `waiting` returns the length of its queue at each scrape."""
        self._queue.labels(name).set_function(waiting)
        return Batch(self._sizes.labels(name).observe, self._waits.labels(name).observe)

    def decided(self, decisions: Iterable[tuple[bool, str]]) -> None:
        """Count a batch's decisions: whether each was allowed, and its reason."""
        for decision, number in collections.Counter(decisions).items():
            increase = self._decided.get(decision)
            if increase is None:
                allowed, reason = decision
                increase = self._decided[decision] = self._decisions.labels(
                    "allowed" if allowed else "denied", reason
                ).inc
            increase(number)

    def whole_hours_late(self, hours: int) -> None:
        """Count an event that is late by whole hours, 1 to 12."""
        self._whole_hours_late.labels(str(hours)).inc()

    def watch_callers(self, is_stale: Callable[[], bool]) -> None:
        """Show whether the callers' file, as it is now, cannot be used."""
        prometheus_client.Gauge(
            "billing_callers_stale",
            "1 while the callers' file cannot be used and the callers read before are still in force.",
            registry=self.registry,
        ).set_function(is_stale)


class StripeRequests:
    """Requests to Stripe, and those that Stripe refuses."""

    def __init__(self, registry: registries.CollectorRegistry) -> None:
        self._sent = prometheus_client.Counter(
            "billing_stripe_requests",
            "Requests to Stripe, repeats included; those with GET are the reads that Stripe rations.",
            ["method", "endpoint"],
            registry=registry,
        )
        self._refused = prometheus_client.Counter(
            "billing_stripe_refusals",
            "Answers of Stripe with a status of 400 or more, by the error's code.",
            ["method", "endpoint", "status", "code"],
            registry=registry,
        )

    def sent(self, method: str, endpoint: str) -> None:
        """Count a request; `endpoint` is a path without ids."""
        self._sent.labels(method, endpoint).inc()

    def refused(self, method: str, endpoint: str, status: int, code: str) -> None:
        """Count a refusal. The codes are Stripe's own: some hundreds at most, so the metric stays small."""
        self._refused.labels(method, endpoint, str(status), code).inc()


class Worker:
    """The metrics of a worker process."""

    def __init__(self) -> None:
        self.registry = registries.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._failures = prometheus_client.Counter(
            "billing_worker_failures", "Steps of a loop that failed.", ["loop"], registry=self.registry
        )
        self._succeeded = prometheus_client.Gauge(
            "billing_worker_last_success_timestamp_seconds",
            "When a loop last finished a step.",
            ["loop"],
            registry=self.registry,
        )
        self._backlog = prometheus_client.Gauge(
            "billing_backlog",
            "Rows that wait for the worker, or that the worker gave up.",
            ["queue", "state"],
            registry=self.registry,
        )
        self._lag = prometheus_client.Gauge(
            "billing_lag_seconds", "Age of the oldest row that waits for the worker.", ["queue"], registry=self.registry
        )
        self._deadline = prometheus_client.Gauge(
            "billing_report_deadline_timestamp_seconds",
            "Until when the most urgent waiting usage report can be on its invoice; +Inf if none waits.",
            registry=self.registry,
        )
        self._paid_invoices = prometheus_client.Gauge(
            "billing_paid_invoices",
            "Invoices of the last 30 days that were paid; Stripe rations reads by them.",
            registry=self.registry,
        )
        self._drift = prometheus_client.Gauge(
            "billing_reconcile_drift",
            "Differences from Stripe that the last reconciliation found and did not repair.",
            registry=self.registry,
        )
        self._reconciled = prometheus_client.Gauge(
            "billing_reconcile_timestamp_seconds",
            "When the last reconciliation ended; 0 before the first.",
            registry=self.registry,
        )

        self._findings = prometheus_client.Gauge(
            "billing_findings", "Open findings, which need a person.", ["kind"], registry=self.registry
        )

    def failed(self, loop: str) -> None:
        """Count a step that failed."""
        self._failures.labels(loop).inc()

    def succeeded(self, loop: str) -> None:
        """Record the instant at which a step finished."""
        self._succeeded.labels(loop).set_to_current_time()

    def backlog(self, queue: str, *, waiting: int, failed: int, lag_seconds: float) -> None:
        """Show the rows of a queue and the age of its oldest row."""
        self._backlog.labels(queue, "waiting").set(waiting)
        self._backlog.labels(queue, "failed").set(failed)
        self._lag.labels(queue).set(lag_seconds)

    def report_deadline(self, at_timestamp: float) -> None:
        """Show until when the waiting usage reports have to be sent."""
        self._deadline.set(at_timestamp)

    def paid_invoices(self, number: int) -> None:
        """Show how many invoices were paid."""
        self._paid_invoices.set(number)

    def found(self, kind: str, number: int) -> None:
        """Show the open findings of a kind."""
        self._findings.labels(kind).set(number)

    def reconciled(self, drift: int, at_timestamp: float) -> None:
        """Show what the last reconciliation found."""
        self._drift.set(drift)
        self._reconciled.set(at_timestamp)


def watch_pool(registry: registries.CollectorRegistry, in_use: Callable[[], int], size: int) -> None:
    """Show how many of a pool's connections are in use."""
    prometheus_client.Gauge(
        "billing_database_connections_in_use",
        "Connections of the pool that are in use; a server keeps a connection between calls.",
        registry=registry,
    ).set_function(in_use)
    prometheus_client.Gauge("billing_database_connections_max", "The pool's size.", registry=registry).set(size)


def watch_readiness(registry: registries.CollectorRegistry, is_ready: Callable[[], bool]) -> None:
    """Show whether the process is ready."""
    prometheus_client.Gauge(
        "billing_ready", "1 while Postgres answers and the process does not drain.", registry=registry
    ).set_function(is_ready)
