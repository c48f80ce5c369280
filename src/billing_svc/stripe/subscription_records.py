"""Subscriptions in Postgres: each row has the last fetched state, and the interval in which it gives its plan.

`subscriptions/` computes the rows and calls `save`. Other areas read them by the functions here; only the decision's
query (a single statement) and the reconciliation's comparison select from the table directly.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables
from billing_svc.stripe import subscription_history
from billing_svc.stripe import subscriptions as stripe_subscriptions

# Stripe's times are whole seconds.
SECOND = timedelta(seconds=1)

_SUBSCRIPTIONS = tables.subscriptions


@dataclass(frozen=True, slots=True)
class SubscriptionRecord:
    """A subscription as stored: every column but `updated_at`; `platform/database/tables.py` explains the columns.

    `past` are its stretches before its periods were moved, the oldest first.

    Of the items, only the base item is stored. `PlanSubscription` has the fewer columns that a decision needs.
    """

    account_id: str
    subscription_id: str
    customer_id: str
    status: str
    is_plan: bool
    plan: str
    price: str
    catalog_version: int
    quantity: int
    anchor: datetime
    billing_period_start: datetime
    billing_period_end: datetime
    trial_end: datetime | None
    cancel_at_period_end: bool
    cancel_at: datetime | None
    ended_at: datetime | None
    effective_from: datetime
    effective_until: datetime | None
    checkout_id: str | None
    superfluous: bool
    schedule_id: str | None
    pending_plan: str | None = None
    pending_price: str | None = None
    pending_quantity: int | None = None
    pending_at: datetime | None = None
    collection_pause: str | None = None
    collection_resumes_at: datetime | None = None
    pause_reason: str | None = None
    overage_denied_from: datetime | None = None
    moved_at: datetime | None = None
    custom_price_id: str | None = None
    missing_meters: str = ""
    extra_meters: str = ""
    items_since: datetime | None = None
    settle_at: datetime | None = None
    past: tuple[subscription_history.PastStretch, ...] = ()

    @property
    def since(self) -> datetime:
        """Return the beginning of the present stretch."""
        return self.effective_from if self.moved_at is None else self.moved_at

    @property
    def is_over(self) -> bool:
        """Say whether it has ended for good, so that another subscription may be bought."""
        return self.status in stripe_subscriptions.OVER

    @property
    def will_end(self) -> bool:
        """Say whether its end is scheduled."""
        return self.cancel_at_period_end or self.cancel_at is not None

    @property
    def is_giving(self) -> bool:
        """Say whether its status gives the customer what it sells."""
        return self.status in stripe_subscriptions.GIVING

    def goes_on(self, at: datetime) -> bool:
        """Say whether it has not ended at `at`; a scheduled end counts even before Stripe has reported it."""
        return not self.is_over and (self.effective_until is None or at < self.effective_until)

    def gives_plan(self, at: datetime) -> bool:
        """Say whether it gives the account its plan at `at`, apart from the account's other subscriptions."""
        in_time = self.effective_from <= at and (self.effective_until is None or at < self.effective_until)
        # A paused subscription whose plan is suspended has ended in this sense.
        return self.is_plan and (self.is_giving or self.status == stripe_subscriptions.PAUSED) and in_time

    def in_billing_period(self, at: datetime) -> bool:
        """Say whether `at` lies in its billing period of the last fetch."""
        return self.billing_period_start <= at < self.billing_period_end

    def was_trial(self, at: datetime) -> bool:
        """Say whether it was in a trial at `at`: usage in a trial is free."""
        return any(start <= at < end for start, end in self._trials())

    def had_trial_between(self, start: datetime, end: datetime) -> bool:
        """Say whether it was in a trial at any time in [start, end)."""
        return any(begun < end and start < ended and begun < ended for begun, ended in self._trials())

    def _trials(self) -> Iterator[tuple[datetime, datetime]]:
        yield self.since, self.trial_end or self.since
        yield from (stretch.trial for stretch in self.past)

    def stretch_end(self, at: datetime) -> datetime | None:
        """Return the end of the past stretch that contains `at`; None if that is the present stretch, or none."""
        return next((stretch.effective_until for stretch in self.past if stretch.covers(at)), None)

    def moved_between(self, start: datetime, end: datetime) -> bool:
        """Say whether its periods were moved in (start, end]."""
        return any(start < moved_at <= end for moved_at in self._moves())

    def billed_at(self, timestamp: datetime, period_start: datetime) -> datetime:
        """Return the instant whose terms and trial hold for usage; `period_start` is the start of its quota period.

        This is its timestamp, except after a move. A move ends the quota period of a plan, so the usage of an earlier
        period is billed as before the move, also if its timestamp is later: it was counted before the move was noticed.
        A move of a metered-only subscription ends no quota period; only a timestamp in the move's second is ambiguous.
        """
        for moved_at in sorted(self._moves()):
            if period_start < moved_at <= timestamp and (self.is_plan or timestamp < moved_at + SECOND):
                return moved_at - SECOND
        return timestamp

    def _moves(self) -> Iterator[datetime]:
        if self.moved_at is not None:
            yield self.moved_at
            yield from (stretch.since for stretch in self.past if stretch.since > self.effective_from)


_COLUMNS = select_list.columns(SubscriptionRecord, _SUBSCRIPTIONS, without=("past",))
_KEY = (_SUBSCRIPTIONS.c.account_id, _SUBSCRIPTIONS.c.subscription_id)
# If two subscriptions began together, the deciding subscription (`metering/quota/terms.py`) comes first.
_LATEST_FIRST = (_SUBSCRIPTIONS.c.effective_from.desc(), _SUBSCRIPTIONS.c.subscription_id.desc())


async def of_account(conn: AsyncConnection, account_id: str) -> list[SubscriptionRecord]:
    """Return all of the account's subscriptions, latest first, also metered-only and ended subscriptions."""
    query = sa.select(*_COLUMNS).where(_SUBSCRIPTIONS.c.account_id == account_id).order_by(*_LATEST_FIRST)
    return await _records(conn, query)


async def plan_subscriptions(conn: AsyncConnection, account_id: str) -> list[SubscriptionRecord]:
    """Return the account's plan subscriptions, latest first, also those that are over."""
    return [row for row in await of_account(conn, account_id) if row.is_plan]


async def plan_subscriptions_of(
    conn: AsyncConnection, account_ids: Collection[str]
) -> dict[str, list[SubscriptionRecord]]:
    """Return the plan subscriptions of many accounts, latest first; accounts without any are left out."""
    query = (
        sa.select(*_COLUMNS)
        .where(_SUBSCRIPTIONS.c.account_id.in_(account_ids), _SUBSCRIPTIONS.c.is_plan)
        .order_by(*_LATEST_FIRST)
    )
    found: dict[str, list[SubscriptionRecord]] = {}
    for record in await _records(conn, query):
        found.setdefault(record.account_id, []).append(record)
    return found


async def living_of_customer(conn: AsyncConnection, account_id: str, customer_id: str) -> list[str]:
    """Return the account's subscriptions under a customer that are not over."""
    query = sa.select(_SUBSCRIPTIONS.c.subscription_id).where(
        _SUBSCRIPTIONS.c.account_id == account_id,
        _SUBSCRIPTIONS.c.customer_id == customer_id,
        _SUBSCRIPTIONS.c.status.not_in(stripe_subscriptions.OVER),
    )
    return list((await conn.execute(query)).scalars())


async def outdated(
    conn: AsyncConnection, version: int, account_id: str | None, after: tuple[str, str], most: int
) -> list[SubscriptionRecord]:
    """Return a page of plan subscriptions that are not over and were sold under an older catalog version.

    Sorted by (account, subscription), beginning after the given key; of one account, or of all.
    """
    query = sa.select(*_COLUMNS).where(
        _SUBSCRIPTIONS.c.is_plan,
        _SUBSCRIPTIONS.c.catalog_version < version,
        _SUBSCRIPTIONS.c.status.not_in(stripe_subscriptions.OVER),
        sa.tuple_(*_KEY) > sa.tuple_(*(sa.literal(part) for part in after)),
    )
    if account_id is not None:
        query = query.where(_SUBSCRIPTIONS.c.account_id == account_id)
    return await _records(conn, query.order_by(*_KEY).limit(most))


async def find(conn: AsyncConnection, account_id: str, subscription_id: str) -> SubscriptionRecord | None:
    """Return a subscription; None if it is not stored."""
    return next(iter(await _records(conn, sa.select(*_COLUMNS).where(*_is(account_id, subscription_id)))), None)


async def save(conn: AsyncConnection, record: SubscriptionRecord, now: datetime) -> bool:
    """Write a subscription as of the last fetch; returns whether that changed anything."""
    values = {column.name: getattr(record, column.name) for column in _COLUMNS}
    row = {**values, "updated_at": now}
    changed = sa.or_(*(_SUBSCRIPTIONS.c[name].is_distinct_from(value) for name, value in values.items()))
    result = await conn.execute(
        postgresql.insert(_SUBSCRIPTIONS)
        .values(row)
        .on_conflict_do_update(index_elements=_KEY, set_=row, where=changed)
        .returning(_SUBSCRIPTIONS.c.subscription_id)
    )
    return result.scalar_one_or_none() is not None


async def to_settle(conn: AsyncConnection, most: int, now: datetime) -> list[SubscriptionRecord]:
    """Return the subscriptions that are to be settled now, those that have waited longest first."""
    query = sa.select(*_COLUMNS).where(_SUBSCRIPTIONS.c.settle_at <= now)
    return await _records(conn, query.order_by(_SUBSCRIPTIONS.c.settle_at).limit(most))


async def settle_again(conn: AsyncConnection, record: SubscriptionRecord, at: datetime | None) -> None:
    """Store when a subscription is to be settled again (None: never), unless that was changed since it was read."""
    is_it = _is(record.account_id, record.subscription_id)
    unchanged = _SUBSCRIPTIONS.c.settle_at == record.settle_at
    await conn.execute(sa.update(_SUBSCRIPTIONS).where(*is_it, unchanged).values(settle_at=at))


async def mark_superfluous(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> None:
    """Mark a subscription as superfluous: it counts as if it had never given its plan."""
    values = {"superfluous": True, "effective_until": _SUBSCRIPTIONS.c.effective_from, "updated_at": now}
    await conn.execute(sa.update(_SUBSCRIPTIONS).where(*_is(account_id, subscription_id)).values(values))


async def _records(conn: AsyncConnection, query: sa.Select[Any]) -> list[SubscriptionRecord]:
    records = [SubscriptionRecord(*row) for row in await conn.execute(query)]
    moved = [(record.account_id, record.subscription_id) for record in records if record.moved_at is not None]
    past = await subscription_history.of_subscriptions(conn, moved)
    return [replace(record, past=past.get((record.account_id, record.subscription_id), ())) for record in records]


def _is(account_id: str, subscription_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_SUBSCRIPTIONS.c.account_id == account_id, _SUBSCRIPTIONS.c.subscription_id == subscription_id)
