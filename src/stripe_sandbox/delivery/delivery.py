"""Sends events to the webhook, at least once and in no fixed order, until a 2xx; each attempt is signed anew."""

import asyncio
import dataclasses
import hashlib
import hmac
import json
import logging
import sqlite3

import httpx

from stripe_sandbox import settings, state
from stripe_sandbox.control import faults
from stripe_sandbox.time import clock

PARALLEL_MAX = 8
"""The most deliveries at the same time; several, so that events arrive out of order, as with Stripe."""

BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 30.0
GIVE_UP_SECONDS = 3 * 24 * 3600.0
"""Like Stripe, the sandbox tries for three days; its pauses are shorter than Stripe's, for the sake of tests."""

TIMEOUT_SECONDS = 10.0
"""The timeout of an attempt; a receiver that needs longer gets the event again."""

AWAY_SECONDS = 0.25
"""How often the loop checks whether the fault `away` has ended."""

_DRAINED_POLL_SECONDS = 0.02

_log = logging.getLogger(__name__)


def sign(body: bytes, secret: str, at: int) -> str:
    """Return the value of the header Stripe-Signature for a body that is sent at the unix time `at`."""
    digest = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """An event whose next attempt is due."""

    event: str
    type: str
    attempts: int
    first_attempt_at: float
    body: bytes


class Delivery:
    """The loop that sends due events. It sleeps until the next attempt is due; `wake()` ends the sleep."""

    def __init__(self, store: state.State, config: settings.Settings, told: faults.Faults) -> None:
        self._store = store
        self._config = config
        self._faults = told
        # Events whose delay was drawn already, so that it is drawn only once for each.
        self._held: set[str] = set()
        self._woken = asyncio.Event()
        self._under_way: set[str] = set()

    def wake(self) -> None:
        """Make the loop check for due deliveries at once."""
        self._woken.set()

    async def drained(self, seconds: float) -> int:
        """Wait at most `seconds` until no event waits for an attempt; returns how many still wait."""
        deadline = clock.SandboxClock.wall() + seconds
        while (  # noqa: ASYNC110 - attempts end in many places, and a step waits for milliseconds
            left := await self._store.run(_count_waiting)
        ) and clock.SandboxClock.wall() < deadline:
            await asyncio.sleep(_DRAINED_POLL_SECONDS)
        return left

    async def run(self) -> None:
        """Deliver until cancelled; the events that are being sent then stay queued."""
        if not self._config.webhook_url:
            return
        # trust_env=False: events for this machine must not go through a proxy that the environment names.
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client, asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                due, pause_seconds = await self._look()
                for each in due:
                    self._under_way.add(each.event)
                    tasks.create_task(self._deliver(client, each))
                try:
                    async with asyncio.timeout(pause_seconds):
                        await self._woken.wait()
                except TimeoutError:
                    continue

    async def _look(self) -> tuple[list[Due], float | None]:
        if self._faults.is_away:
            return [], AWAY_SECONDS
        try:
            return await self._store.run(self._select_due)
        except sqlite3.OperationalError:
            _log.warning("the state is locked; deliveries wait", exc_info=True)
            return [], BACKOFF_FIRST_SECONDS

    def _select_due(self, work: state.Work) -> tuple[list[Due], float | None]:
        """Return the events to send now, and the seconds until the next is due (None: no event waits)."""
        rows = work.connection.execute(
            "SELECT d.event, d.attempts, d.first_attempt_at, d.next_attempt_at, o.body, json_extract(o.body, '$.type')"
            " FROM deliveries d"
            " JOIN objects o ON o.id = d.event WHERE d.next_attempt_at IS NOT NULL"
            " ORDER BY d.next_attempt_at LIMIT ?",
            (2 * PARALLEL_MAX,),
        ).fetchall()
        now = clock.SandboxClock.wall()
        room = PARALLEL_MAX - len(self._under_way)
        waiting = [row for row in rows if row[0] not in self._under_way]
        due = [Due(row[0], row[5], row[1], row[2], row[4].encode()) for row in waiting if row[3] <= now][:room]
        later = [row[3] - now for row in waiting if row[3] > now]
        return due, min(later, default=None)

    async def _deliver(self, client: httpx.AsyncClient, due: Due) -> None:
        first = due.attempts == 0 and due.event not in self._held
        treatment = self._faults.of_webhook(due.type, first_attempt=first)
        if first and treatment.hold_seconds:
            self._held.add(due.event)
            await self._mark(due, next_attempt_at=clock.SandboxClock.wall() + treatment.hold_seconds)
            return
        self._held.discard(due.event)
        delivered = False
        if not treatment.dropped:
            attempts = [self._attempt(client, due) for _ in range(treatment.copies)]
            delivered = any(await asyncio.gather(*attempts))
        now = clock.SandboxClock.wall()
        pause = min(BACKOFF_FIRST_SECONDS * 2 ** min(due.attempts, 10), BACKOFF_MAX_SECONDS)
        gives_up = treatment.forever or now + pause > due.first_attempt_at + GIVE_UP_SECONDS
        await self._mark(
            due,
            attempts=1,
            next_attempt_at=None if delivered or gives_up else now + pause,
            delivered_at=now if delivered else None,
        )

    async def _mark(
        self, due: Due, *, attempts: int = 0, next_attempt_at: float | None, delivered_at: float | None = None
    ) -> None:
        def mark(work: state.Work) -> None:
            work.connection.execute(
                "UPDATE deliveries SET attempts = attempts + ?, next_attempt_at = ?, delivered_at = ? WHERE event = ?",
                (attempts, next_attempt_at, delivered_at, due.event),
            )

        try:
            await self._store.run(mark)
        except sqlite3.OperationalError:
            _log.warning("event %s will be sent again: the state is locked", due.event, exc_info=True)
        finally:
            self._under_way.discard(due.event)
            self.wake()

    async def _attempt(self, client: httpx.AsyncClient, due: Due) -> bool:
        """Send the event; returns whether the receiver answered 2xx. A redirect is a failure, as with Stripe."""
        body = json.dumps(json.loads(due.body), indent=2).encode()
        secret = self._config.webhook_secret or ""
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": sign(body, secret, int(clock.SandboxClock.wall())),
            "User-Agent": "Stripe/1.0 (sandbox)",
        }
        try:
            answer = await client.post(str(self._config.webhook_url), content=body, headers=headers)
        except httpx.HTTPError as error:
            _log.debug("event %s: %s", due.event, type(error).__name__)
            return False
        return answer.is_success


def _count_waiting(work: state.Work) -> int:
    (count,) = work.connection.execute("SELECT count(*) FROM deliveries WHERE next_attempt_at IS NOT NULL").fetchone()
    return int(count)
