"""Duties in Postgres. One row for each subscription that something has to be done about."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

# Whoever takes a duty has it for so long: a few calls to Stripe and a few transactions.
TAKEN_FOR = timedelta(seconds=60)

_DUTIES = tables.subscription_duties


@dataclass(frozen=True, slots=True)
class FollowUp:
    """Something to be done about a subscription. Its id is new for each new cause."""

    account_id: str
    subscription_id: str
    duty_id: str
    attempts: int
    created_at: datetime


async def add(conn: AsyncConnection, account_id: str, subscription_id: str, due_at: datetime, now: datetime) -> bool:
    """Note that something has to be done by `due_at`; returns whether that is new. An earlier time counts."""
    row = {
        "account_id": account_id,
        "subscription_id": subscription_id,
        "duty_id": uuid.uuid4().hex,
        "due_at": due_at,
        "created_at": now,
    }
    insert = postgresql.insert(_DUTIES).values(row)
    result = await conn.execute(
        insert.on_conflict_do_update(
            index_elements=[_DUTIES.c.account_id, _DUTIES.c.subscription_id],
            set_={"due_at": sa.func.least(_DUTIES.c.due_at, insert.excluded.due_at)},
        ).returning(_DUTIES.c.duty_id)
    )
    return bool(result.scalar_one() == row["duty_id"])


async def defer(conn: AsyncConnection, duty: FollowUp, until: datetime) -> None:
    """Let a duty rest until there is something to do about it; until then nothing of it is overdue."""
    await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(duty.account_id, duty.subscription_id), _DUTIES.c.duty_id == duty.duty_id)
        .values(due_at=until, created_at=until)
    )


async def look_again(conn: AsyncConnection, duty: FollowUp, at: datetime) -> None:
    """Keep a duty that seems done until it is seen to stay so."""
    await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(duty.account_id, duty.subscription_id), _DUTIES.c.duty_id == duty.duty_id)
        .values(due_at=at)
    )


async def renew(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> None:
    """Note that it has to be done anew: what is wanted has changed since it was last looked at."""
    values = {"duty_id": uuid.uuid4().hex, "due_at": now, "attempts": 0, "note": None, "created_at": now}
    insert = postgresql.insert(_DUTIES).values(account_id=account_id, subscription_id=subscription_id, **values)
    await conn.execute(
        insert.on_conflict_do_update(index_elements=[_DUTIES.c.account_id, _DUTIES.c.subscription_id], set_=values)
    )


async def due(conn: AsyncConnection, most: int, now: datetime) -> list[tuple[str, str]]:
    """Return the (account, subscription) of duties that are due, the longest waiting first."""
    query = sa.select(_DUTIES.c.account_id, _DUTIES.c.subscription_id).where(_DUTIES.c.due_at <= now)
    return [
        (row.account_id, row.subscription_id)
        for row in await conn.execute(query.order_by(_DUTIES.c.due_at).limit(most))
    ]


async def of_account(conn: AsyncConnection, account_id: str, now: datetime) -> list[str]:
    """Return the subscriptions of an account with duties that are due."""
    query = sa.select(_DUTIES.c.subscription_id).where(_DUTIES.c.account_id == account_id, _DUTIES.c.due_at <= now)
    return list((await conn.execute(query.order_by(_DUTIES.c.subscription_id))).scalars())


async def take(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> bool:
    """Keep other workers from a duty for a while; returns whether it was due. One who dies holds it up so long."""
    taken = await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(account_id, subscription_id), _DUTIES.c.due_at <= now)
        .values(due_at=now + TAKEN_FOR)
    )
    return taken.rowcount == 1


async def find(conn: AsyncConnection, account_id: str, subscription_id: str) -> FollowUp | None:
    """Return the duty about a subscription; None if there is none."""
    columns = select_list.columns(FollowUp, _DUTIES)
    row = (await conn.execute(sa.select(*columns).where(*_is(account_id, subscription_id)))).one_or_none()
    return None if row is None else FollowUp(*row)


async def postpone(conn: AsyncConnection, duty: FollowUp, until: datetime, note: str) -> None:
    """Let a duty wait after a failure; one that was renewed meanwhile stays due."""
    await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(duty.account_id, duty.subscription_id), _DUTIES.c.duty_id == duty.duty_id)
        .values(due_at=until, attempts=_DUTIES.c.attempts + 1, note=note)
    )


async def close(conn: AsyncConnection, duty: FollowUp) -> None:
    """Forget a duty that is done; one that was renewed meanwhile stays."""
    await conn.execute(
        sa.delete(_DUTIES).where(*_is(duty.account_id, duty.subscription_id), _DUTIES.c.duty_id == duty.duty_id)
    )


def _is(account_id: str, subscription_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_DUTIES.c.account_id == account_id, _DUTIES.c.subscription_id == subscription_id)
