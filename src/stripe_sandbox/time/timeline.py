"""Makes the due changes in the order of their times, and moves the clock from one to the next."""

import asyncio
import dataclasses
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from stripe_sandbox import state
from stripe_sandbox.api import requests
from stripe_sandbox.customers import checkout
from stripe_sandbox.time import agenda, due

TICK_SECONDS = 0.25
"""How often due changes are looked for while the clock is not moved."""

ADVANCE_SECONDS_MAX = 5 * 366 * 24 * 3600
"""The most seconds of an advance; a longer advance is taken for a mistake."""

DELIVERY_SECONDS = 10.0
"""How long a step waits by default until its events are delivered."""

_OFFSET = "clock_offset_seconds"

_log = logging.getLogger(__name__)


def _sessions(work: state.Work) -> Iterator[due.Due]:
    rows = work.connection.execute(
        "SELECT id, json_extract(body, '$.expires_at') FROM objects"
        " WHERE kind = 'checkout.session' AND json_extract(body, '$.status') = 'open'"
    ).fetchall()
    for session_id, expires_at in rows:
        yield due.Due(expires_at, "expires", session_id, checkout.current)


SOURCES: tuple[due.Source, ...] = (_sessions, agenda.upcoming)
"""Changes of the same second happen in this order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """The result of a step: the time, the changes made, and the number of events that are not delivered yet."""

    now: int
    moved_seconds: int
    happened: tuple[due.Due, ...]
    undelivered: int


class Timeline:
    """Moves the clock and makes the due changes."""

    def __init__(self, sandbox: requests.Sandbox) -> None:
        self._sandbox = sandbox
        self._one_at_a_time = asyncio.Lock()
        # Changes that have failed; they are not tried again, because they would fail at once.
        self._given_up: set[tuple[str, str]] = set()

    async def begin(self) -> None:
        """Set the clock to the offset that the last process stored."""
        self._sandbox.clock.set_offset(await self._sandbox.store.run(lambda work: work.fact(_OFFSET)))

    async def run(self) -> None:
        """Make due changes until cancelled."""
        while True:
            try:
                async with self._one_at_a_time:
                    await self._catch_up()
            except Exception:  # noqa: BLE001 - time goes on, whatever is wrong at this instant; logged in full
                _log.exception("what is due waits")
            await asyncio.sleep(TICK_SECONDS)

    async def next_due(self) -> due.Due | None:
        """Return the next change; None if there is none."""
        return await self._sandbox.store.run(self._first)

    async def step(self, seconds_max: int, delivery_seconds: float = DELIVERY_SECONDS) -> Step:
        """Move the clock to the next change, but at most by `seconds_max`, and make the change.

        Returns when the change's events are delivered, at the latest after `delivery_seconds`.
        """
        clock, store = self._sandbox.clock, self._sandbox.store
        async with self._one_at_a_time:
            happened = await self._catch_up()
            first = await store.run(self._first)
            before = clock.offset_seconds
            ahead = seconds_max if first is None else min(max(first.at - clock.now(), 0), seconds_max)
            if ahead:
                await store.run(lambda work: work.set_fact(_OFFSET, before + ahead))
                clock.set_offset(before + ahead)
            happened += await self._catch_up()
        undelivered = await self._sandbox.delivery.drained(delivery_seconds)
        return Step(clock.now(), ahead, tuple(happened), undelivered)

    async def _catch_up(self) -> list[due.Due]:
        """Make all changes that are due, and return them."""
        happened: list[due.Due] = []
        while (done := await self._sandbox.store.run(self._do_first)) is not None:
            self._sandbox.delivery.wake()
            if happened and done == happened[-1]:
                self._give_up(done, None)
            happened.append(done)
        return happened

    def _do_first(self, work: state.Work) -> due.Due | None:
        first = self._first(work)
        if first is None or first.at > self._sandbox.clock.now():
            return None
        scope = dataclasses.replace(self._sandbox.context(work), now=first.at)
        try:
            with work.attempt():
                first.act(scope, first.subject)
        except Exception as error:  # noqa: BLE001 - what comes later must happen all the same; logged in full
            self._give_up(first, error)
        return first

    def _give_up(self, failed: due.Due, error: Exception | None) -> None:
        _log.error("%s %s: given up%s", failed.subject, failed.what, "" if error else ", it stays due", exc_info=error)
        self._given_up.add((failed.subject, failed.what))

    def _first(self, work: state.Work) -> due.Due | None:
        everything: Iterable[due.Due] = (each for source in SOURCES for each in source(work))
        waiting = (each for each in everything if (each.subject, each.what) not in self._given_up)
        # Of several changes at the same time, `min` returns the first.
        return min(waiting, key=lambda each: each.at, default=None)


def shown(each: due.Due | None) -> dict[str, Any] | None:
    """Return a change in the control routes' form; None if there is none."""
    return {"at": each.at, "what": each.what, "subject": each.subject} if each else None
