"""The completion queue of gRPC's core, emptied on the event loop.

A thread waits for the first event and wakes the loop, which then takes up all others by itself: under load one wake-up
brings dozens of events. grpc.aio has its thread take up each one and hand it over by itself.
"""

import asyncio
import threading
from typing import Any

import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

_log = structlog.get_logger("rpc")

# Between two turns of the loop, so that nothing else waits for long: some milliseconds' work.
_EVENTS_AT_ONCE = 64
# A moment that is over: what has not come yet is not waited for.
_AT_ONCE = 0.0


class Events:
    """Calls each event's tag, on the event loop, as `tag(event)`; not of those that are no news."""

    def __init__(self) -> None:
        self.queue = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # Held while the loop empties the queue: the thread waits for it, the loop lets it go.
        self._emptying = threading.Lock()
        self._emptying.acquire()
        self._thread = threading.Thread(target=self._wait, name="grpc-events", daemon=True)
        self._thread.start()

    async def end(self) -> None:
        """Take up what is still under way, then end; nothing may be begun any more."""
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
            except RuntimeError:  # the loop was closed on its way out
                return
            # The core spins while somebody holds on to the event of a call that has ended.
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
                if _is_news(event):
                    event.tag(event)
            except Exception:  # noqa: BLE001 - one call's defect must not end all others
                _log.exception("event_failed")
            event = None
            event = self._poll(_AT_ONCE)
        self._loop.call_soon(self._take_up, event)

    def _poll(self, until: float | None = None) -> Any:  # noqa: ANN401 - as Cython has it
        while True:
            try:
                return self.queue.poll(until)
            except Exception:  # noqa: BLE001 - what one caller sent must not make the server deaf to all others
                _log.exception("event_lost")

    def _end(self) -> None:
        self._emptying.release()
        if not self._ended.done():
            self._ended.set_result(None)


def _is_news(event: Any) -> bool:  # noqa: ANN401 - as Cython has it
    """Say whether an event changes anything: most answers go out, and most calls end by them."""
    if event.tag is None:
        return False
    if not isinstance(event, cygrpc.BatchOperationEvent):
        return True
    operation = event.batch_operations[0]
    return not isinstance(operation, cygrpc.ReceiveCloseOnServerOperation) or bool(operation.cancelled())
