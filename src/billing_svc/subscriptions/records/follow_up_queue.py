"""Follow-ups in Postgres: at most one row for each subscription."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

# How long a taken follow-up is reserved: enough for a few calls to Stripe and a few transactions.
TAKEN_FOR = timedelta(seconds=60)

_DUTIES = tables.subscription_duties


@dataclass(frozen=True, slots=True)
class FollowUp:
    """Something to do at Stripe for a subscription. Each new cause gives it a new id."""

    account_id: str
    subscription_id: str
    duty_id: str
    attempts: int
    created_at: datetime


async def add(conn: AsyncConnection, account_id: str, subscription_id: str, due_at: datetime, now: datetime) -> bool:
    """Store that a follow-up is due at `due_at`; returns whether it is new. The earlier of two times counts."""
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


async def defer(conn: AsyncConnection, follow_up: FollowUp, until: datetime) -> None:
    """Delay a follow-up until `until`, and count it as overdue only from then on."""
    await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(follow_up.account_id, follow_up.subscription_id), _DUTIES.c.duty_id == follow_up.duty_id)
        .values(due_at=until, created_at=until)
    )


async def look_again(conn: AsyncConnection, follow_up: FollowUp, at: datetime) -> None:
    """Keep a follow-up that seems done, and check again at `at` that it stayed so."""
    await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(follow_up.account_id, follow_up.subscription_id), _DUTIES.c.duty_id == follow_up.duty_id)
        .values(due_at=at)
    )


async def renew(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> None:
    """Store or renew a follow-up, due now and with a new id: the wanted state may have changed since the last check."""
    values = {"duty_id": uuid.uuid4().hex, "due_at": now, "attempts": 0, "note": None, "created_at": now}
    insert = postgresql.insert(_DUTIES).values(account_id=account_id, subscription_id=subscription_id, **values)
    await conn.execute(
        insert.on_conflict_do_update(index_elements=[_DUTIES.c.account_id, _DUTIES.c.subscription_id], set_=values)
    )


async def due(conn: AsyncConnection, most: int, now: datetime) -> list[tuple[str, str]]:
    """Return (account, subscription) of the due follow-ups, those that have waited longest first."""
    query = sa.select(_DUTIES.c.account_id, _DUTIES.c.subscription_id).where(_DUTIES.c.due_at <= now)
    return [
        (row.account_id, row.subscription_id)
        for row in await conn.execute(query.order_by(_DUTIES.c.due_at).limit(most))
    ]


async def of_account(conn: AsyncConnection, account_id: str, now: datetime) -> list[str]:
    """Return the account's subscriptions with due follow-ups."""
    query = sa.select(_DUTIES.c.subscription_id).where(_DUTIES.c.account_id == account_id, _DUTIES.c.due_at <= now)
    return list((await conn.execute(query.order_by(_DUTIES.c.subscription_id))).scalars())


async def take(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> bool:
    """Reserve a follow-up for this worker; returns whether it was due. If the worker dies, the reservation expires."""
    taken = await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(account_id, subscription_id), _DUTIES.c.due_at <= now)
        .values(due_at=now + TAKEN_FOR)
    )
    return taken.rowcount == 1


async def find(conn: AsyncConnection, account_id: str, subscription_id: str) -> FollowUp | None:
    """Return the follow-up of a subscription; None if there is none."""
    columns = select_list.columns(FollowUp, _DUTIES)
    row = (await conn.execute(sa.select(*columns).where(*_is(account_id, subscription_id)))).one_or_none()
    return None if row is None else FollowUp(*row)


async def postpone(conn: AsyncConnection, follow_up: FollowUp, until: datetime, note: str) -> None:
    """Delay a follow-up after a failure; if it was renewed meanwhile, it stays due."""
    await conn.execute(
        sa.update(_DUTIES)
        .where(*_is(follow_up.account_id, follow_up.subscription_id), _DUTIES.c.duty_id == follow_up.duty_id)
        .values(due_at=until, attempts=_DUTIES.c.attempts + 1, note=note)
    )


async def close(conn: AsyncConnection, follow_up: FollowUp) -> None:
    """Delete a follow-up that is done; if it was renewed meanwhile, it stays."""
    await conn.execute(
        sa.delete(_DUTIES).where(
            *_is(follow_up.account_id, follow_up.subscription_id), _DUTIES.c.duty_id == follow_up.duty_id
        )
    )


def _is(account_id: str, subscription_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_DUTIES.c.account_id == account_id, _DUTIES.c.subscription_id == subscription_id)
