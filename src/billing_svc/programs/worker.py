"""The worker's loops. Stateless: any number of workers may run; locks and leases in Postgres share the work out."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from billing_svc.catalog import versions
from billing_svc.inbox import apply_events
from billing_svc.inbox import store as events_store
from billing_svc.metering.gauges import open_periods
from billing_svc.metering.reservations import hold_units
from billing_svc.platform import clock, errors, processes
from billing_svc.platform.database import engine, transactions
from billing_svc.platform.findings import store as findings_store
from billing_svc.platform.monitoring import http_port, metrics, readiness
from billing_svc.platform.monitoring import store as monitoring_store
from billing_svc.platform.settings import Settings
from billing_svc.reconciliation import schedule
from billing_svc.stripe import client, intents
from billing_svc.subscriptions.follow_ups import run_follow_ups
from billing_svc.subscriptions.records import refresh_subscription
from billing_svc.subscriptions.refusals import gone_customers
from billing_svc.usage_export import accrual, billability, charge_unbilled, export_now, sending

_log = structlog.get_logger("worker")

# A bought plan is in force within a second of its event; an idle poll costs an index probe.
INBOX_POLL_SECONDS = 0.25
# Follow-ups are done within about a second, such as ending a superfluous subscription.
FOLLOW_UPS_POLL_SECONDS = 1.0
# A gauge's new period is needed for its invoice, an hour later at the earliest.
GAUGES_POLL_SECONDS = 5.0
# Decisions ignore expired holds; the sweep only marks their rows as expired.
HOLDS_POLL_SECONDS = 5.0
# A body may be kept a minute longer than its retention period.
BODIES_POLL_SECONDS = 60.0
# Prometheus' usual scrape interval.
BACKLOG_POLL_SECONDS = 15.0
# The paid invoices are compared with the requests of a week, so a late number does no harm; counting them is costly.
PAYMENTS_POLL_SECONDS = 300.0
# The time over which Stripe rations reads.
PAYMENTS_COUNTED = timedelta(days=30)
# A period that has ended is sealed and sent within about a second; an idle poll costs an index probe.
USAGE_POLL_SECONDS = 0.5
# A pass of the scheduled comparison begins within a minute of its time.
RECONCILE_POLL_SECONDS = 60.0
# The pause after a failed step, for example if Postgres cannot be reached.
PAUSE_SECONDS = 1.0
# How long a step under way may take after a stop: a call to Stripe and a transaction. Work that is cancelled then is
# done later, by this or another worker, when its lease has expired.
FINISH_SECONDS_MAX = client.CALL_SECONDS_MAX + transactions.BUDGET_SECONDS


async def work(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; steps under way get FINISH_SECONDS_MAX to end."""
    stop = processes.stop_event()
    url = settings.database_url.get_secret_value()
    pool = engine.create_engine(url, pool_size=settings.database_pool_size)
    probed = engine.create_engine(url, pool_size=1)
    counted = metrics.Worker()
    metrics.watch_pool(counted.registry, lambda: processes.connections_in_use(pool), settings.database_pool_size)
    ready = readiness.Readiness(transactions.Transactions(probed, readiness.ANSWER_SECONDS_MAX))
    metrics.watch_readiness(counted.registry, ready.is_ready)
    database = transactions.Transactions(pool)
    requests = metrics.StripeRequests(counted.registry)
    stripe = client.Stripe.paced(settings, database, requests)
    catalogs, now = versions.CatalogCache(), clock.from_settings(settings)
    inbox = apply_events.Inbox(database, catalogs, stripe, now, livemode=settings.livemode)

    sealer = accrual.Accrual(database, catalogs, now, settings.usage_seal_interval, settings.usage_send_interval)
    refresher = refresh_subscription.Refresher(database, catalogs, stripe, now)
    sender = sending.Sender(
        database,
        catalogs,
        stripe,
        now,
        gone_customers.GoneCustomers(database, stripe, refresher, now).unlink_if_deleted,
    )

    follow_ups = run_follow_ups.FollowUps(
        database,
        catalogs,
        intents.Requests(database, stripe, now),
        refresher,
        export_now.ExportNow(database, catalogs, stripe, now),
        charge_unbilled.UnbilledUsage(database, stripe, now),
        now,
    )

    # With its own client, so that its reads can be counted apart.
    comparing = client.Stripe.paced(settings, database, requests)
    comparison = schedule.Schedule(database, catalogs, comparing, now, settings.reconcile_reads_max)

    async def open_gauges() -> int:
        return await database.run(lambda conn: open_periods.open_due(conn, catalogs, now.now()))

    async def expire_holds() -> int:
        return await database.run(lambda conn: hold_units.sweep(conn, now.now()))

    async def forget_bodies() -> int:
        before = now.now() - timedelta(days=settings.event_body_days)
        return await database.run(lambda conn: events_store.forget_bodies(conn, before))

    async def show_backlogs() -> int:
        await read_backlogs(database, now, counted)
        return 0

    async def count_payments() -> int:
        since = now.now() - PAYMENTS_COUNTED
        counted.paid_invoices(await database.read(lambda conn: monitoring_store.paid_invoices(conn, since)))
        return 0

    steps: dict[str, tuple[Callable[[], Awaitable[int]], float]] = {
        "inbox": (inbox.apply_due, INBOX_POLL_SECONDS),
        "duties": (follow_ups.do_due, FOLLOW_UPS_POLL_SECONDS),
        "gauges": (open_gauges, GAUGES_POLL_SECONDS),
        "holds": (expire_holds, HOLDS_POLL_SECONDS),
        "bodies": (forget_bodies, BODIES_POLL_SECONDS),
        "backlogs": (show_backlogs, BACKLOG_POLL_SECONDS),
        "payments": (count_payments, PAYMENTS_POLL_SECONDS),
        "sealing": (sealer.seal_due, USAGE_POLL_SECONDS),
        "sending": (sender.send_due, USAGE_POLL_SECONDS),
    }
    if settings.reconcile_reads_max:
        steps["reconcile"] = (comparison.go_on, RECONCILE_POLL_SECONDS)
    operators = http_port.app_of(counted.registry, ready.is_ready)
    try:
        async with http_port.answering(settings.monitoring_listen, operators), asyncio.TaskGroup() as loops:
            loops.create_task(ready.follow(stop))
            for name, (step, poll_seconds) in steps.items():
                loops.create_task(_loop(name, step, poll_seconds, stop, counted))
            _log.info("working")
    finally:
        await database.drain()
        await stripe.close()
        await comparing.close()
        await pool.dispose()
        await probed.dispose()
        _log.info("stopped")


async def read_backlogs(database: transactions.Transactions, now: clock.Clock, counted: metrics.Worker) -> None:
    """Show what waits, until when it has to be done, and what the last reconciliation found."""
    for backlog in await database.read(monitoring_store.backlogs):
        lag_seconds = backlog.lag_seconds(now.now())
        counted.backlog(backlog.queue, waiting=backlog.waiting, failed=backlog.failed, lag_seconds=lag_seconds)
    for kind, number in (await database.read(findings_store.count_open)).items():
        counted.found(kind, number)
    ends = await database.read(monitoring_store.earliest_period_end)
    counted.report_deadline(math.inf if ends is None else billability.sent_until(ends).timestamp())
    reconciled = await database.read(monitoring_store.last_reconciliation)
    if reconciled is not None:
        drift, at = reconciled
        counted.reconciled(drift, at.timestamp())


async def _loop(
    name: str,
    step: Callable[[], Awaitable[int]],
    poll_seconds: float,
    stop: asyncio.Event,
    counted: metrics.Worker | None = None,
) -> None:
    """Repeat a step: at once if it found work, otherwise after a pause."""
    counted = counted or metrics.Worker()
    while not stop.is_set():
        try:
            pause_seconds = 0.0 if await _unless_stopped(step, stop) else poll_seconds
            counted.succeeded(name)
        except* errors.Unavailable:
            counted.failed(name)
            _log.warning("database_away", loop=name)
            pause_seconds = PAUSE_SECONDS
        except* Exception:  # noqa: BLE001 - logged in full; see below
            # A defect of our code in one loop must not stop the other loops.
            counted.failed(name)
            _log.exception("loop_failed", loop=name)
            pause_seconds = PAUSE_SECONDS
        if pause_seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_seconds)


async def _unless_stopped(step: Callable[[], Awaitable[int]], stop: asyncio.Event) -> int:
    """Run a step; after a stop it gets FINISH_SECONDS_MAX to end, and is then cancelled."""
    running = asyncio.ensure_future(step())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({running}, timeout=FINISH_SECONDS_MAX)
    finally:
        stopping.cancel()
        running.cancel()
    return running.result() if running.done() else 0
