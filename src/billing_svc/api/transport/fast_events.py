"""The completion queue of gRPC's core, emptied on the event loop.

A thread waits for the first event and wakes the loop, which then takes up all others by itself: under load one wake-up
brings dozens of events. grpc.aio has its thread take up each one and hand it over by itself.
"""

import asyncio
import contextlib
import os
import threading
from typing import Any

import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type hints

_log = structlog.get_logger("rpc")

# Between two turns of the loop, so that nothing else waits for long: some milliseconds' work.
_EVENTS_AT_ONCE = 64
# A moment that is over: what has not come yet is not waited for.
_AT_ONCE = 0.0
# A lone call comes with two: itself and its request. After so many of them, one after the other, the next will be too.
_LONE_EVENTS_MAX = 2
_LONE_IN_A_ROW = 16


class Events:
    """Calls each event's tag, on the event loop, as `tag(event)`; not of those that are no news."""

    def __init__(self) -> None:
        self.queue = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # Held while the loop empties the queue: the thread waits for it, the loop lets it go.
        self._emptying = threading.Lock()
        self._emptying.acquire()
        self._lone_in_a_row = 0
        self._thread = threading.Thread(target=self._wait, name="grpc-events", daemon=True)
        self._thread.start()

    async def end(self) -> None:
        """Take up what is still under way, then end; nothing may be begun any more."""
        self.queue.shutdown()
        await self._ended
        self._thread.join()

    def _wait(self) -> None:
        is_last = is_patient = False
        may_wait = _is_scheduled_as_usual()
        while not is_last:
            event = self._poll()
            is_last = event.completion_type == cygrpc.CompletionType.queue_shutdown
            # Of lone calls the next one is then read while the loop is not done with the last. Under load this would
            # take the interpreter from the loop for each event.
            is_news = is_last or not is_patient or _is_news(event)
            if is_news:
                try:
                    self._loop.call_soon_threadsafe(self._take_up, event)
                except RuntimeError:  # the loop was closed on its way out
                    return
            # The core spins while somebody holds on to the event of a call that has ended.
            del event
            if is_news and not is_last:
                self._emptying.acquire()
                if may_wait and is_patient is not (self._lone_in_a_row >= _LONE_IN_A_ROW):
                    is_patient = not is_patient
                    _let_others_finish(is_patient)

    def _take_up(self, event: Any) -> None:  # noqa: ANN401 - as Cython has it
        for taken in range(_EVENTS_AT_ONCE):
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                self._lone_in_a_row = self._lone_in_a_row + 1 if taken <= _LONE_EVENTS_MAX else 0
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
        self._lone_in_a_row = 0
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


def _is_scheduled_as_usual() -> bool:
    """Say whether this thread has the usual policy; one of an operator's own is not touched."""
    if not hasattr(os, "SCHED_BATCH"):  # not on Linux
        return False
    try:
        return os.sched_getscheduler(0) == os.SCHED_OTHER
    except OSError:  # a sandbox forbids it
        return False


def _let_others_finish(is_patient: bool) -> None:  # noqa: FBT001 - as it is said
    """Let this thread, when it wakes, wait until what runs on its core pauses; or no longer.

    To push the loop aside in the midst of a lone call only to find the interpreter taken by it costs that call a tenth
    of its time. Under load whatever has come is to be read soon.
    """
    policy = os.SCHED_BATCH if is_patient else os.SCHED_OTHER
    with contextlib.suppress(OSError):  # where a sandbox forbids it, nothing is lost but that tenth
        os.sched_setscheduler(0, policy, os.sched_param(0))
