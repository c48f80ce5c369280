"""What callers asked under their request ids, in Postgres."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import errors
from billing_svc.platform.database import tables, transactions

_REQUESTS = tables.change_requests


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was sent."""

    account_id: str
    request_id: str
    kind: str
    content: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a request came to, and what was answered; without an answer it is under way."""

    target: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    is_closed: bool


async def find(conn: AsyncConnection, asked: Asked) -> Remembered | None:
    """Return what is remembered of a request; None if its id is new. Raises RequestIdReused."""
    query = sa.select(_REQUESTS).where(*_is(asked))
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        return None
    if (row.kind, row.content) != (asked.kind, dict(asked.content)):
        message = "request_id: was used with other content in this account"
        raise errors.RequestIdReused(message, {"request_id": asked.request_id})
    return Remembered(row.target, row.answer, row.closed_at is not None)


async def remember(conn: AsyncConnection, asked: Asked, target: Mapping[str, object], now: datetime) -> None:
    """Keep a new request and what it comes to."""
    inserted = await conn.execute(
        postgresql.insert(_REQUESTS)
        .values(
            account_id=asked.account_id,
            request_id=asked.request_id,
            kind=asked.kind,
            content=dict(asked.content),
            target=dict(target),
            created_at=now,
        )
        .on_conflict_do_nothing()
        .returning(_REQUESTS.c.request_id)
    )
    if inserted.scalar_one_or_none() is None:
        # The same call at the same time was faster; the next attempt finds it.
        raise transactions.RetryTransaction


async def keep_answer(conn: AsyncConnection, asked: Asked, answer: Mapping[str, object]) -> Mapping[str, Any]:
    """Keep what is answered; the first one stays, and is returned."""
    await conn.execute(
        sa.update(_REQUESTS).where(*_is(asked), _REQUESTS.c.answer.is_(None)).values(answer=dict(answer))
    )
    kept: Mapping[str, Any] = (await conn.execute(sa.select(_REQUESTS.c.answer).where(*_is(asked)))).scalar_one()
    return kept


async def close(conn: AsyncConnection, asked: Asked, now: datetime) -> None:
    """Note that a request is done: its repeats do nothing any more."""
    await conn.execute(sa.update(_REQUESTS).where(*_is(asked), _REQUESTS.c.closed_at.is_(None)).values(closed_at=now))


def _is(asked: Asked) -> tuple[sa.ColumnElement[bool], ...]:
    return (_REQUESTS.c.account_id == asked.account_id, _REQUESTS.c.request_id == asked.request_id)
