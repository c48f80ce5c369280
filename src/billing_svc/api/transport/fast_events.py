"""The completion queue of gRPC's core, emptied on the event loop.

A thread waits for an event and wakes the loop, which then handles all events that are in the queue: under load dozens
for each wake-up. grpc.aio instead passes every single event from its thread to the loop.
"""

import asyncio
import threading
from typing import Any

import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

_log = structlog.get_logger("rpc")

# Events handled in one turn of the loop: some milliseconds of work, so that other tasks do not wait long.
_EVENTS_AT_ONCE = 64
# A deadline in the past: `poll` returns at once, also without an event.
_AT_ONCE = 0.0


class Events:
    """Calls `tag(event)` on the event loop for each event, except for events that change nothing."""

    def __init__(self) -> None:
        self.queue = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # Locked while the loop empties the queue: the thread waits until the loop releases it.
        self._emptying = threading.Lock()
        self._emptying.acquire()
        self._thread = threading.Thread(target=self._wait, name="grpc-events", daemon=True)
        self._thread.start()

    async def end(self) -> None:
        """Handle the events of operations that were begun, then end the thread; no operation may begin any more."""
        self.queue.shutdown()
        await self._ended
        self._thread.join()

    def _wait(self) -> None:
        is_last = False
        while not is_last:
            event = self._poll()
            is_last = event.completion_type == cygrpc.CompletionType.queue_shutdown
            try:
                self._loop.call_soon_threadsafe(self._take_up, event)
            except RuntimeError:  # the loop was closed meanwhile
                return
            # While an event of an ended call is referenced, a thread of the core uses the CPU without pause.
            del event
            if not is_last:
                self._emptying.acquire()

    def _take_up(self, event: Any) -> None:  # noqa: ANN401 - as Cython has it
        for _ in range(_EVENTS_AT_ONCE):
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                self._emptying.release()
                return
            if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                self._end()
                return
            try:
                if _changes_something(event):
                    event.tag(event)
            except Exception:  # noqa: BLE001 - an error in one call must not end the others
                _log.exception("event_failed")
            event = None
            event = self._poll(_AT_ONCE)
        self._loop.call_soon(self._take_up, event)

    def _poll(self, until: float | None = None) -> Any:  # noqa: ANN401 - as Cython has it
        while True:
            try:
                return self.queue.poll(until)
            except Exception:  # noqa: BLE001 - one caller's bytes must not stop the server
                _log.exception("event_lost")

    def _end(self) -> None:
        self._emptying.release()
        if not self._ended.done():
            self._ended.set_result(None)


def _changes_something(event: Any) -> bool:  # noqa: ANN401 - as Cython has it
    """Say whether a tag has to be called: not for a sent answer, nor for a call that ended by its answer."""
    if event.tag is None:
        return False
    if not isinstance(event, cygrpc.BatchOperationEvent):
        return True
    operation = event.batch_operations[0]
    return not isinstance(operation, cygrpc.ReceiveCloseOnServerOperation) or bool(operation.cancelled())
