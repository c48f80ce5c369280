"""Findings in Postgres: opened and updated by whatever notices them, closed by what settles them."""

import enum
import uuid
from collections.abc import Collection
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
    # What `reconcile` opens and closes; they are listed with these words.
    CUSTOMER = "customer"  # a linked customer was deleted at Stripe
    SUBSCRIPTION = "subscription"  # a subscription's row differs from Stripe's object, or the object cannot be read
    INVOICE = "invoice"  # the same of an invoice
    REPAYMENT = "repayment"  # an invoice's refunds or disputes differ from those at Stripe
    STRANGER = "stranger"  # somebody pays for a plan of ours, and belongs to no account
    USAGE_UNSEALED = "usage: unsealed"  # billable units are in no usage report
    USAGE_SLICES = "usage: slices"  # reports do not add up to the accrued units
    USAGE_NOT_SENT = "usage: not_sent"  # reports of a past period are not at Stripe
    USAGE_FAILED = "usage: failed"  # Stripe refused or lost reports
    USAGE_METER = "usage: meter"  # a meter has other units than were sent to it
    USAGE_ITEM = "usage: item"  # an invoice item is missing or has another amount
    USAGE_UNINVOICED = "usage: uninvoiced"  # no invoice will take an invoice item
    USAGE_LINE = "usage: line"  # invoices charge other units than were sent
    USAGE_UNREADABLE = "usage: unreadable"  # an object that the comparison of usage needs cannot be read


# A change of plan puts these right.
OF_ITEMS = frozenset({Kind.ITEMS_DIFFER, Kind.TWO_PLANS})
# Opened and closed by comparisons only.
COMPARED_OBJECTS = frozenset({Kind.CUSTOMER, Kind.SUBSCRIPTION, Kind.INVOICE, Kind.REPAYMENT, Kind.STRANGER})
COMPARED_USAGE = frozenset(kind for kind in Kind if kind.startswith("usage: "))


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


@dataclass(frozen=True, slots=True)
class FindingFilter:
    """Which open findings to list; an empty field matches all."""

    account_id: str = ""
    kind: str = ""


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


async def settle_others(
    conn: AsyncConnection,
    kinds: Collection[Kind],
    account_ids: Collection[str] | None,
    found: Collection[tuple[str, str, str]],
    now: datetime,
) -> None:
    """Close the open findings of some kinds, of some accounts or of all, that a comparison did not find any more.

    `found` has (account, kind, object) of what it found.
    """
    query = sa.select(*_COLUMNS).where(_OPEN, _FINDINGS.c.kind.in_(kinds))
    if account_ids is not None:
        query = query.where(_FINDINGS.c.account_id.in_(account_ids))
    stored = [OpenFinding(*row) for row in await conn.execute(query)]
    settled = [one for one in stored if (one.account_id, one.kind, one.object_id) not in found]
    for one in settled:
        is_it = (_FINDINGS.c.account_id == one.account_id, _FINDINGS.c.finding_id == one.finding_id, _OPEN)
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


async def list_page(
    conn: AsyncConnection, choice: FindingFilter, after: tuple[datetime, str, str] | None, most: int
) -> list[OpenFinding]:
    """Return open findings, the oldest first, that follow the position `after` (since, account, finding)."""
    order = (_FINDINGS.c.since, _FINDINGS.c.account_id, _FINDINGS.c.finding_id)
    query = sa.select(*_COLUMNS).where(_OPEN).order_by(*order).limit(most)
    if choice.account_id:
        query = query.where(_FINDINGS.c.account_id == choice.account_id)
    if choice.kind:
        query = query.where(_FINDINGS.c.kind == choice.kind)
    if after is not None:
        query = query.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(one) for one in after)))
    return [OpenFinding(*row) for row in await conn.execute(query)]


async def open_about(conn: AsyncConnection, account_id: str, object_id: str) -> dict[str, OpenFinding]:
    """Return the open findings about an object, by kind."""
    query = sa.select(*_COLUMNS).where(_FINDINGS.c.account_id == account_id, _FINDINGS.c.object_id == object_id, _OPEN)
    return {row.kind: OpenFinding(*row) for row in await conn.execute(query)}


async def count_open(conn: AsyncConnection) -> dict[str, int]:
    """Return the number of open findings of each kind, also of kinds without any."""
    query = sa.select(_FINDINGS.c.kind, sa.func.count()).where(_OPEN).group_by(_FINDINGS.c.kind)
    return dict.fromkeys((kind.value for kind in Kind), 0) | {row[0]: row[1] for row in await conn.execute(query)}
