"""Writes at Stripe that survive a crash: the intent is stored before the call, its result after.

An intent's row has the idempotency key and the exact parameters. After a crash, the next caller sends the same request
again, and Stripe answers with the first result. Stripe forgets keys after a day, and stores a 500 as a key's answer; in
these two cases the object is first looked up at Stripe, by the metadata that we gave it. In all other cases the key
alone is enough.
"""

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import clock, errors
from billing_svc.platform.database import tables, transactions
from billing_svc.stripe import client, parse

# Stripe keeps idempotency keys for at least 24 hours.
KEY_TRUSTED_FOR = timedelta(hours=23)
# How often a call starts again because Stripe refused parameters that an earlier call stored; more rounds mean that
# callers work against each other.
ROUNDS_MAX = 3
# The fields of an answer that callers need; others (a customer's e-mail, for example) are not stored.
KEPT = ("id", "url", "expires_at")

_REQUESTS = tables.stripe_requests

# Finds the object that an intent may have created, at the given instant or within a day after it; None if there is
# none.
LookUp = Callable[[datetime], Awaitable[client.Data | None]]


@dataclass(frozen=True, slots=True)
class Intent:
    """A write at Stripe that must happen only once for its purpose."""

    account_id: str
    purpose: str
    operation: str
    params: Mapping[str, Any]


class _OthersRefused(Exception):
    """Stripe refused the parameters that an earlier call stored for this purpose."""


class Requests:
    """Performs intents."""

    def __init__(self, database: transactions.Transactions, stripe: client.Stripe, now: clock.Clock) -> None:
        self._database = database
        self._stripe = stripe
        self._clock = now

    async def perform(self, intent: Intent, look_up: LookUp) -> client.Data:
        """Make sure that the intent's object exists at Stripe, and return its fields in `KEPT`, as first stored.

        May be repeated after any failure, also concurrently: all callers get the same object. Raises StripeUnavailable
        if that is not possible now, and StripeRefused or NotAtStripe if Stripe rejects the parameters; then the next
        call for this purpose starts with its own parameters.
        """
        for _ in range(ROUNDS_MAX):
            try:
                return await self._attempt(intent, look_up)
            except _OthersRefused:
                continue
        raise errors.LostRace(
            "Stripe refused other calls for the same object at the same time; send the same call again"
        )

    async def is_known(self, account_id: str, purpose: str) -> bool:
        """Say whether an intent is stored for a purpose and was not refused."""
        query = sa.select(_REQUESTS.c.state).where(
            _REQUESTS.c.account_id == account_id, _REQUESTS.c.purpose == purpose, _REQUESTS.c.state != "refused"
        )
        return await self._database.read(lambda conn: _exists(conn, query))

    async def _attempt(self, intent: Intent, look_up: LookUp) -> client.Data:
        now = self._clock.now()
        row = await self._database.run(lambda conn: _begin(conn, intent, now))
        if row.state == "done":
            return dict(row.result)
        if row.answered_500 or now - row.created_at >= KEY_TRUSTED_FOR:
            made = await look_up(row.created_at)
            if made is not None:
                return await self._finish(intent, row.idempotency_key, made)
            # The write was not made, so the parameters of this call count, and not the parameters of a day ago.
            row = await self._database.run(lambda conn: _renew_key(conn, intent, row.idempotency_key, now))
            if row.state == "done":
                return dict(row.result)
        try:
            made = await self._stripe.write(row.operation, row.params, row.idempotency_key)
            # Without an id the write stays open, and a repeat gets the same answer.
            parse.StripeFields.of(made, f"answer to {row.operation}").text("id")
        except (errors.StripeRefused, client.NotAtStripe) as error:
            await self._close(intent, row.idempotency_key, {"state": "refused", "error": str(error)})
            if row.params != intent.params:
                # The refused parameters are an earlier call's, so this call's parameters have not been tried yet.
                raise _OthersRefused from error
            raise
        except client.KeySpent:
            await self._close(intent, row.idempotency_key, {"answered_500": True})
            raise
        return await self._finish(intent, row.idempotency_key, made)

    async def _finish(self, intent: Intent, key: str, made: client.Data) -> client.Data:
        result = {name: made[name] for name in KEPT if name in made}
        row = await self._close(intent, key, {"state": "done", "result": result})
        # Another call may have finished first, under a newer key; all callers return the stored result.
        return dict(row.result) if row.state == "done" else result

    async def _close(self, intent: Intent, key: str, values: Mapping[str, object]) -> sa.Row[Any]:
        closed_at = self._clock.now() if "state" in values else None

        async def work(conn: AsyncConnection) -> sa.Row[Any]:
            # Only the open row with this key: another call may have renewed the key, and a finished row must not
            # change.
            ours = (*_is(intent), _REQUESTS.c.idempotency_key == key, _REQUESTS.c.state == "open")
            await conn.execute(sa.update(_REQUESTS).where(*ours).values(**values, closed_at=closed_at))
            return await _read(conn, intent)

        return await self._database.run(work)


async def others_open(conn: AsyncConnection, account_id: str, subscription_id: str, purpose: str) -> bool:
    """Say whether a write about a subscription, for another purpose, was begun and has no known outcome."""
    query = sa.select(_REQUESTS.c.state).where(
        _REQUESTS.c.account_id == account_id,
        _REQUESTS.c.purpose != purpose,
        _REQUESTS.c.params["subscription"].astext == subscription_id,
        _REQUESTS.c.state == "open",
    )
    return await _exists(conn, query)


async def has_made(
    conn: AsyncConnection, account_id: str, operation: str, object_id: str, params: Mapping[str, str], since: datetime
) -> bool:
    """Say whether a write of this service made an object, or may have made it.

    A write with the parameters `params` may have made it if its outcome is unknown and it was stored since `since`.
    """
    may_have = sa.and_(_REQUESTS.c.state == "open", _REQUESTS.c.params == params, _REQUESTS.c.created_at >= since)
    query = sa.select(_REQUESTS.c.state).where(
        _REQUESTS.c.account_id == account_id,
        _REQUESTS.c.operation == operation,
        sa.or_(_REQUESTS.c.result["id"].astext == object_id, may_have),
    )
    return await _exists(conn, query)


async def _exists(conn: AsyncConnection, query: sa.Select[Any]) -> bool:
    return (await conn.execute(query)).first() is not None


def _is(intent: Intent) -> tuple[sa.ColumnElement[bool], ...]:
    return (_REQUESTS.c.account_id == intent.account_id, _REQUESTS.c.purpose == intent.purpose)


async def _read(conn: AsyncConnection, intent: Intent) -> sa.Row[Any]:
    return (await conn.execute(sa.select(_REQUESTS).where(*_is(intent)))).one()


async def _begin(conn: AsyncConnection, intent: Intent, now: datetime) -> sa.Row[Any]:
    """Store the intent if it is new or was refused, and return the stored row."""
    fresh = {
        "idempotency_key": uuid.uuid4().hex,
        "operation": intent.operation,
        "params": dict(intent.params),
        "state": "open",
        "answered_500": False,
        "created_at": now,
        "closed_at": None,
        "error": None,
    }
    insert = postgresql.insert(_REQUESTS).values(account_id=intent.account_id, purpose=intent.purpose, **fresh)
    await conn.execute(
        insert.on_conflict_do_update(
            index_elements=[_REQUESTS.c.account_id, _REQUESTS.c.purpose],
            set_=fresh,
            where=_REQUESTS.c.state == "refused",
        )
    )
    return await _read(conn, intent)


async def _renew_key(conn: AsyncConnection, intent: Intent, old_key: str, now: datetime) -> sa.Row[Any]:
    """Give an intent without an object at Stripe a new key; a concurrent second call uses the first call's key."""
    await conn.execute(
        sa.update(_REQUESTS)
        .where(*_is(intent), _REQUESTS.c.idempotency_key == old_key, _REQUESTS.c.state == "open")
        .values(
            idempotency_key=uuid.uuid4().hex,
            operation=intent.operation,
            params=dict(intent.params),
            answered_500=False,
            created_at=now,
        )
    )
    return await _read(conn, intent)
