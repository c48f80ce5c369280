"""What every long-running process does about signals and memory."""

import asyncio
import gc
import signal

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; takes both over from Python."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


# A batch makes thousands of objects, nearly all of which die with it by reference count alone: at the default of 700,
# the collector of cycles ran many times in each and took a fifth of the time of a call that records.
GC_THRESHOLDS = (20_000, 50, 100)


def calm_garbage_collector() -> None:
    """Take what was imported and built by now out of the collector's sight, and let it look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def connections_in_use(engine: AsyncEngine) -> int:
    """Return how many connections of an engine's pool are lent out."""
    pool = engine.sync_engine.pool
    return pool.checkedout() if isinstance(pool, QueuePool) else 0
