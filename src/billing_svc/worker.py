"""The worker's loops. Stateless: any number of workers may run; the database decides who does what."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from billing_svc import clock, errors, processes
from billing_svc.catalog import versions
from billing_svc.database import engine, transactions
from billing_svc.gauges import opening
from billing_svc.reservations import reserving
from billing_svc.settings import Settings
from billing_svc.stripe import client
from billing_svc.stripe_events import applying

_log = structlog.get_logger("worker")

# A plan is in force within a second of its event; an idle poll costs one index probe.
INBOX_POLL_SECONDS = 0.25
# A period's opening is for its invoice, an hour later at the earliest.
GAUGES_POLL_SECONDS = 5.0
# Expired holds stand in nobody's way; sweeping them only keeps the tables tidy.
HOLDS_POLL_SECONDS = 5.0
# After a failure that concerns all, such as an absent database.
PAUSE_SECONDS = 1.0
# What a step under way is given once the worker is told to stop: a call to Stripe and a transaction. What is cut off
# is taken up again, here or by another worker, when its lease has run out.
FINISH_SECONDS_MAX = client.CALL_SECONDS_MAX + transactions.BUDGET_SECONDS


async def work(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; what is under way is finished first."""
    stop = processes.stop_event()
    pool = engine.create_engine(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
    database = transactions.Transactions(pool)
    stripe = client.Stripe.from_settings(settings)
    catalogs, now = versions.CatalogCache(), clock.Clock()
    inbox = applying.Inbox(database, catalogs, stripe, now)

    async def open_gauges() -> int:
        return await database.run(lambda conn: opening.open_due(conn, catalogs, now.now()))

    async def expire_holds() -> int:
        return await database.run(lambda conn: reserving.sweep(conn, now.now()))

    try:
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_loop("inbox", inbox.apply_due, INBOX_POLL_SECONDS, stop))
            loops.create_task(_loop("gauges", open_gauges, GAUGES_POLL_SECONDS, stop))
            loops.create_task(_loop("holds", expire_holds, HOLDS_POLL_SECONDS, stop))
            _log.info("working")
    finally:
        await database.drain()
        await stripe.close()
        await pool.dispose()
        _log.info("stopped")


async def _loop(name: str, step: Callable[[], Awaitable[int]], poll_seconds: float, stop: asyncio.Event) -> None:
    """Repeat a step: at once while it finds something to do, after a pause when it does not."""
    while not stop.is_set():
        try:
            pause_seconds = 0.0 if await _unless_stopped(step, stop) else poll_seconds
        except* errors.Unavailable:
            _log.warning("database_away", loop=name)
            pause_seconds = PAUSE_SECONDS
        except* Exception:  # noqa: BLE001 - logged in full; see below
            # A defect of ours in one loop must not stop the others.
            _log.exception("loop_failed", loop=name)
            pause_seconds = PAUSE_SECONDS
        if pause_seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_seconds)


async def _unless_stopped(step: Callable[[], Awaitable[int]], stop: asyncio.Event) -> int:
    """Run a step; a stop leaves it a bounded time to finish."""
    running = asyncio.ensure_future(step())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({running}, timeout=FINISH_SECONDS_MAX)
    finally:
        stopping.cancel()
        running.cancel()
    return running.result() if running.done() else 0
