"""Ends a stretch of a subscription when Stripe has opened a billing period out of turn: a move (ADR 0019).

Stripe does so when the billing cycle anchor is reset, and when a trial is added, extended or ended by hand.
"""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.metering.counters import store as counters_store
from billing_svc.metering.quota import periods
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.stripe import subscription_history, subscription_records
from billing_svc.usage_export import accrual


def moved_at(
    previous: subscription_records.SubscriptionRecord, anchor: datetime, period_start: datetime
) -> datetime | None:
    """Return when Stripe opened a billing period out of turn since the row was stored; None if it did not.

    `anchor` and `period_start` are those of the subscription as fetched.
    """
    at = period_start
    if anchor != previous.anchor:
        at = min(anchor, period_start)  # if the move is noticed late, further periods have begun in turn
    elif periods.anchored_month(anchor, period_start).start == period_start:
        return None
    return at if at > max(previous.since, previous.billing_period_start) else None


async def keep(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    origin: audit_store.Origin,
    previous: subscription_records.SubscriptionRecord | None,
    anchor: datetime,
    period_start: datetime,
    now: datetime,
) -> datetime | None:
    """Store the stretch that a move has ended, if there was a move; returns the time of the latest move.

    Called before the new row is written, with the account locked.
    """
    if previous is None:
        return None
    at = moved_at(previous, anchor, period_start)
    if at is None:
        return previous.moved_at
    await _end_stretch(conn, catalogs, origin, previous, at, now)
    return at


async def _end_stretch(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    origin: audit_store.Origin,
    previous: subscription_records.SubscriptionRecord,
    at: datetime,
    now: datetime,
) -> None:
    """Store a stretch and end its quota periods.

    All usage so far is accrued with timestamps before the move, so that it is billed as the usage of the old stretch.
    """
    until = at if previous.effective_until is None else min(at, previous.effective_until)
    if until <= previous.since:
        return  # it gave nothing
    await accrual.seal(conn, catalogs, previous.account_id, timedelta(), now, until=at)
    if previous.is_plan:
        catalog = await catalogs.get(conn, previous.catalog_version)
        if catalog.plan(previous.plan).quota_period != "calendar_month":
            await counters_store.end_periods(conn, previous.account_id, previous.subscription_id, until)
    stretch = subscription_history.PastStretch(
        account_id=previous.account_id,
        subscription_id=previous.subscription_id,
        since=previous.since,
        effective_until=until,
        effective_from=previous.effective_from,
        anchor=previous.anchor,
        trial_end=previous.trial_end,
        billing_period_start=previous.billing_period_start,
        status=previous.status,
        is_plan=previous.is_plan,
        plan=previous.plan,
        catalog_version=previous.catalog_version,
        quantity=previous.quantity,
        overage_denied_from=previous.overage_denied_from,
    )
    await subscription_history.append(conn, stretch)
    await accounts_store.extend_history(conn, previous.account_id, until)
    changes = {
        "subscription": previous.subscription_id,
        "moved_at": at.isoformat(),
        "since": previous.since.isoformat(),
        "anchor": previous.anchor.isoformat(),
        "trial_end": previous.trial_end.isoformat() if previous.trial_end else None,
    }
    await audit_store.append(conn, origin, previous.account_id, "subscription.moved", changes, now)
