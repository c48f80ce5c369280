"""Signals and garbage collection, the same in every long-running process."""

import asyncio
import gc
import signal

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; replaces Python's handlers of both signals."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


# A batch makes thousands of objects, and reference counting frees nearly all of them when the batch ends. At the
# default threshold of 700, the cycle collector ran many times in each batch and took a fifth of the time of a
# recording call.
GC_THRESHOLDS = (20_000, 50, 100)


def calm_garbage_collector() -> None:
    """Exclude the objects that exist now from garbage collection, and make the collector run less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def connections_in_use(engine: AsyncEngine) -> int:
    """Return how many connections of an engine's pool are in use."""
    pool = engine.sync_engine.pool
    return pool.checkedout() if isinstance(pool, QueuePool) else 0
