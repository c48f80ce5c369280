"""Requests by their request ids, in Postgres."""

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
class CallerRequest:
    """A request as it was sent."""

    account_id: str
    request_id: str
    kind: str
    content: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RememberedRequest:
    """The stored target and answer of a request; a request without an answer is under way.

    An empty target of a change means that Stripe refused the request: its repeat is judged by the state of that time.
    """

    target: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    is_closed: bool
    # Stored by this call.
    is_new: bool = False

    @property
    def is_judged(self) -> bool:
        """Say whether the request was judged: its target is stored, or it is done."""
        return self.is_closed or bool(self.target)


async def find(conn: AsyncConnection, asked: CallerRequest) -> RememberedRequest | None:
    """Return what is remembered of a request; None if its id is new.

    Raises RequestIdReused if the id was used with different content.
    """
    query = sa.select(_REQUESTS).where(*_is(asked))
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        return None
    if (row.kind, row.content) != (asked.kind, dict(asked.content)):
        message = "request_id: was used with other content in this account"
        raise errors.RequestIdReused(message, {"request_id": asked.request_id})
    return RememberedRequest(row.target, row.answer, row.closed_at is not None)


async def remember(conn: AsyncConnection, asked: CallerRequest, target: Mapping[str, object], now: datetime) -> None:
    """Store a new request and its target."""
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
        # A concurrent call with the same id stored its request first; the next attempt finds it.
        raise transactions.RetryTransaction


async def keep_answer(conn: AsyncConnection, asked: CallerRequest, answer: Mapping[str, object]) -> Mapping[str, Any]:
    """Store the answer unless an answer is stored already; returns the stored answer."""
    await conn.execute(
        sa.update(_REQUESTS).where(*_is(asked), _REQUESTS.c.answer.is_(None)).values(answer=dict(answer))
    )
    kept: Mapping[str, Any] = (await conn.execute(sa.select(_REQUESTS.c.answer).where(*_is(asked)))).scalar_one()
    return kept


async def close(
    conn: AsyncConnection,
    asked: CallerRequest,
    now: datetime,
    target: Mapping[str, object] | None = None,
    answer: Mapping[str, object] | None = None,
) -> None:
    """Mark a request as done: repeats of it do nothing.

    What was done is stored: a concurrent call of the same request may have forgotten it, because Stripe refused it.
    """
    done = {"target": target, "answer": answer}
    values = {name: dict(value) for name, value in done.items() if value is not None}
    await conn.execute(
        sa.update(_REQUESTS).where(*_is(asked), _REQUESTS.c.closed_at.is_(None)).values(closed_at=now, **values)
    )


async def judge_again(conn: AsyncConnection, asked: CallerRequest, refused: Mapping[str, object]) -> None:
    """Forget the target and the answer of a request that Stripe refused, so that a repeat is judged without them.

    If the stored target is not the refused target any more, a concurrent call has judged the request again already.
    """
    await conn.execute(
        sa.update(_REQUESTS)
        .where(*_is(asked), _REQUESTS.c.closed_at.is_(None), _REQUESTS.c.target == dict(refused))
        .values(target={}, answer=sa.null())
    )


async def judge(conn: AsyncConnection, asked: CallerRequest, target: Mapping[str, object], now: datetime) -> bool:
    """Store a change's target, unless a target is stored; returns whether it did."""
    known = await find(conn, asked)
    if known is not None and known.is_judged:
        return False
    if known is None:
        await remember(conn, asked, target, now)
    else:
        await set_target(conn, asked, target)
    return True


async def set_target(conn: AsyncConnection, asked: CallerRequest, target: Mapping[str, object]) -> None:
    """Store the target of a request that is judged again."""
    await conn.execute(
        sa.update(_REQUESTS).where(*_is(asked), _REQUESTS.c.closed_at.is_(None)).values(target=dict(target))
    )


def _is(asked: CallerRequest) -> tuple[sa.ColumnElement[bool], ...]:
    return (_REQUESTS.c.account_id == asked.account_id, _REQUESTS.c.request_id == asked.request_id)
