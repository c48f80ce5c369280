"""Findings in Postgres: opened and updated by whatever notices them, closed by what settles them."""

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

_log = structlog.get_logger(__name__)

_FINDINGS = tables.findings
_OPEN = _FINDINGS.c.closed_at.is_(None)


class Kind(enum.StrEnum):
    """What is wrong."""

    ITEMS_DIFFER = "items_differ"  # a subscription's items are not those of the plan as sold
    TWO_PLANS = "two_plans"  # a subscription has base items of several plans, or several of a plan
    TWO_SUBSCRIPTIONS = "two_subscriptions"  # several live plan subscriptions of a customer
    DRAFT_STUCK = "draft_stuck"  # a draft that will not become final by itself: it charges nobody
    USAGE_BILLED_TWICE = "usage_billed_twice"  # usage was sent to a meter that several items bill


@dataclass(frozen=True, slots=True)
class NewFinding:
    """A finding about an object at Stripe; `amount` is the money that is wrong, in minor units."""

    kind: Kind
    object_id: str
    detail: str
    settled_by: str
    amount: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class OpenFinding:
    """A finding as stored."""

    account_id: str
    finding_id: str
    kind: str
    object_id: str
    detail: str
    settled_by: str
    amount: int | None
    currency: str | None
    since: datetime


_COLUMNS = select_list.columns(OpenFinding, _FINDINGS)


async def report(conn: AsyncConnection, account_id: str, finding: NewFinding, now: datetime) -> None:
    """Open a finding; if it is open already, update what it says. It stays open since it was first noticed."""
    told = {
        "detail": finding.detail,
        "settled_by": finding.settled_by,
        "amount": finding.amount,
        "currency": finding.currency,
        "updated_at": now,
    }
    key = {"account_id": account_id, "kind": finding.kind, "object_id": finding.object_id}
    row = {**key, **told, "finding_id": uuid.uuid4().hex, "since": now}
    insert = postgresql.insert(_FINDINGS).values(row)
    result = await conn.execute(
        insert.on_conflict_do_update(
            index_elements=list(key),
            index_where=_OPEN,
            set_=told,
            where=sa.or_(
                _FINDINGS.c.detail != finding.detail, _FINDINGS.c.amount.is_distinct_from(insert.excluded.amount)
            ),
        ).returning(_FINDINGS.c.finding_id)
    )
    if result.scalar_one_or_none() == row["finding_id"]:
        _log.warning("finding", kind=finding.kind, account=account_id, object=finding.object_id, detail=finding.detail)


async def settle(conn: AsyncConnection, account_id: str, kind: Kind, object_id: str, now: datetime) -> None:
    """Close the finding of a kind about an object, if it is open."""
    is_it = (_FINDINGS.c.account_id == account_id, _FINDINGS.c.kind == kind, _FINDINGS.c.object_id == object_id, _OPEN)
    await conn.execute(sa.update(_FINDINGS).where(*is_it).values(closed_at=now, updated_at=now))


async def close(conn: AsyncConnection, account_id: str, finding_id: str, note: str, now: datetime) -> bool:
    """Close a finding that a person has settled; returns whether it was open."""
    is_it = (_FINDINGS.c.account_id == account_id, _FINDINGS.c.finding_id == finding_id, _OPEN)
    closed = await conn.execute(sa.update(_FINDINGS).where(*is_it).values(closed_at=now, updated_at=now, note=note))
    return closed.rowcount == 1


async def list_open(conn: AsyncConnection, account_id: str | None = None) -> list[OpenFinding]:
    """Return the open findings of an account, or of all, the oldest first."""
    query = sa.select(*_COLUMNS).where(_OPEN).order_by(_FINDINGS.c.since, _FINDINGS.c.kind, _FINDINGS.c.finding_id)
    if account_id is not None:
        query = query.where(_FINDINGS.c.account_id == account_id)
    return [OpenFinding(*row) for row in await conn.execute(query)]


async def open_about(conn: AsyncConnection, account_id: str, object_id: str) -> dict[str, OpenFinding]:
    """Return the open findings about an object, by kind."""
    query = sa.select(*_COLUMNS).where(_FINDINGS.c.account_id == account_id, _FINDINGS.c.object_id == object_id, _OPEN)
    return {row.kind: OpenFinding(*row) for row in await conn.execute(query)}


async def count_open(conn: AsyncConnection) -> dict[str, int]:
    """Return the number of open findings of each kind, also of kinds without any."""
    query = sa.select(_FINDINGS.c.kind, sa.func.count()).where(_OPEN).group_by(_FINDINGS.c.kind)
    return dict.fromkeys((kind.value for kind in Kind), 0) | {row[0]: row[1] for row in await conn.execute(query)}
