"""Makes stored events wait to be applied again, once for each request id, which its audit row remembers."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.inbox import store
from billing_svc.platform import errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions

# How many events a transaction replays; the caller calls again for more.
EVENTS_MAX = 10_000
ACTION = "replay_stripe_events"
# The inbox belongs to no account.
_NO_ACCOUNT = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """Which events to replay: the named events, or all that match `choice`."""

    event_ids: tuple[str, ...]
    choice: store.EventFilter
    request_id: str

    @property
    def content(self) -> str:
        """Return a digest of the request; a repeat with the same request id must have the same digest."""
        text = json.dumps([sorted(self.event_ids), asdict(self.choice)], default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many events wait again, and whether there are more."""

    count: int
    more: bool


async def preview(conn: AsyncConnection, replay: Replay) -> Replayed:
    """Count the events of a replay without a change. Raises StripeEventNotFound and StripeEventBodyDeleted."""
    event_ids = await _event_ids(conn, replay)
    return Replayed(min(len(event_ids), EVENTS_MAX), len(event_ids) > EVENTS_MAX)


async def run(conn: AsyncConnection, replay: Replay, origin: audit_store.Origin, now: datetime) -> Replayed:
    """Make events wait again, with the audit row; a repeat returns the first call's result.

    Raises StripeEventNotFound, StripeEventBodyDeleted and RequestIdReused.
    """
    earlier = await audit_store.find_request(conn, _NO_ACCOUNT, replay.request_id)
    if earlier is not None:
        if (earlier.action, earlier.changes.get("content")) != (ACTION, replay.content):
            message = f"request_id: {replay.request_id!r} was used with other content"
            raise errors.RequestIdReused(message, {"request_id": replay.request_id})
        return Replayed(earlier.changes["replayed"], earlier.changes["more"])
    event_ids = await _event_ids(conn, replay)
    count = await store.replay(conn, event_ids[:EVENTS_MAX], now)
    replayed = Replayed(count, len(event_ids) > EVENTS_MAX)
    filters = {name: str(value) for name, value in asdict(replay.choice).items() if value}
    changes = {
        "replayed": replayed.count,
        "more": replayed.more,
        **({"event_ids": list(replay.event_ids)} if replay.event_ids else filters),
        "content": replay.content,
    }
    if not await audit_store.append_once(conn, origin, _NO_ACCOUNT, ACTION, changes, now):
        # A concurrent call with the same request id was first; the next attempt finds its row.
        raise transactions.RetryTransaction
    return replayed


async def _event_ids(conn: AsyncConnection, replay: Replay) -> list[str]:
    """Return the ids of the events to replay, at most EVENTS_MAX + 1."""
    if not replay.event_ids:
        return await store.replayable(conn, replay.choice, EVENTS_MAX + 1)
    kept = await store.bodies_kept(conn, replay.event_ids)
    for event_id in replay.event_ids:
        if event_id not in kept:
            raise errors.StripeEventNotFound(f"event_ids: there is no event {event_id!r}", {"event_id": event_id})
        if not kept[event_id]:
            message = f"event_ids: the body of {event_id!r} was deleted at the end of its retention period"
            raise errors.StripeEventBodyDeleted(message, {"event_id": event_id})
    return list(replay.event_ids)
