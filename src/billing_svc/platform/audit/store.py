"""Audit rows in Postgres: written once, never changed."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

# The actor of changes that the service makes by itself, without a request.
SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Origin:
    """Who makes a change, and in which request.

    Actors are `caller:<name>`, `operator:<login>`, `stripe:<event id>` and SERVICE.
    """

    actor: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a request did, as stored in its audit row."""

    action: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries to list; an empty or None field matches all entries."""

    account_id: str = ""
    actor: str = ""
    action: str = ""
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One mutation as stored."""

    at: datetime
    account_id: str
    entry_id: str
    actor: str
    action: str
    request_id: str
    changes: Mapping[str, Any]


async def append(
    conn: AsyncConnection, origin: Origin, account_id: str, action: str, changes: Mapping[str, object], now: datetime
) -> None:
    """Add the row of one mutation; `changes` holds the values that it set, without secrets or personal data."""
    await conn.execute(
        sa.insert(tables.audit_log).values(
            account_id=account_id,
            entry_id=uuid.uuid4().hex,
            at=now,
            actor=origin.actor,
            action=action,
            request_id=origin.request_id,
            changes=dict(changes),
        )
    )


async def append_once(
    conn: AsyncConnection, origin: Origin, account_id: str, action: str, changes: Mapping[str, object], now: datetime
) -> bool:
    """Add the row of a mutation whose request id makes it repeatable; returns whether the id was new to the account.

    A repeat of the request finds this row: it holds the answer and is never deleted. The primary key admits a
    request id only once for each account.
    """
    inserted = await conn.execute(
        postgresql.insert(tables.audit_log)
        .values(
            account_id=account_id,
            entry_id=_entry_of(origin.request_id),
            at=now,
            actor=origin.actor,
            action=action,
            request_id=origin.request_id,
            changes=dict(changes),
        )
        .on_conflict_do_nothing()
        .returning(tables.audit_log.c.entry_id)
    )
    return inserted.scalar_one_or_none() is not None


async def find_request(conn: AsyncConnection, account_id: str, request_id: str) -> Entry | None:
    """Return what a request did, as `append_once` stored it; None if the request id is new to the account."""
    log = tables.audit_log.c
    query = sa.select(*select_list.columns(Entry, tables.audit_log))
    row = (
        await conn.execute(query.where(log.account_id == account_id, log.entry_id == _entry_of(request_id)))
    ).one_or_none()
    return None if row is None else Entry(*row)


async def list_entries(
    conn: AsyncConnection, choice: AuditFilter, after: tuple[datetime, str, str] | None, most: int
) -> list[AuditEntry]:
    """Return entries, newest first, that follow the position `after` (instant, account, entry)."""
    log = tables.audit_log.c
    query = sa.select(*select_list.columns(AuditEntry, tables.audit_log))
    if choice.account_id:
        query = query.where(log.account_id == choice.account_id)
    if choice.actor == "stripe":
        query = query.where(sa.func.starts_with(log.actor, "stripe:"))
    elif choice.actor:
        actors = [f"caller:{choice.actor}", f"operator:{choice.actor}"]
        query = query.where(log.actor.in_([*actors, SERVICE] if choice.actor == SERVICE else actors))
    if choice.action:
        query = query.where(log.action == choice.action)
    if choice.since is not None:
        query = query.where(log.at >= choice.since)
    if choice.before is not None:
        query = query.where(log.at < choice.before)
    order = (log.at, log.account_id, log.entry_id)
    if after is not None:
        query = query.where(sa.tuple_(*order) < sa.tuple_(*(sa.literal(one) for one in after)))
    rows = await conn.execute(query.order_by(*(column.desc() for column in order)).limit(most))
    return [AuditEntry(*row) for row in rows]


def _entry_of(request_id: str) -> str:
    # The same length for every request id. 128 bits of the digest are enough to rule a collision out.
    return hashlib.sha256(request_id.encode()).hexdigest()[:32]
