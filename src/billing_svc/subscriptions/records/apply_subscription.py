"""Updates a subscription's row from Stripe's object. Events and RPCs both use it; nothing else writes these fields."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.customers import store as customers_store
from billing_svc.metering.gauges import store as gauges_store
from billing_svc.platform import errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.stripe import prices, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import consequences, follow_up_queue, rules
from billing_svc.usage_export import charge_unbilled

_log = structlog.get_logger(__name__)

_KNOWN_STATUSES = stripe_subscriptions.GIVING | rules.SUSPENDED | rules.STILLBORN | stripe_subscriptions.OVER


class NotOurs(errors.BillingError):
    """The object belongs to a customer that this service did not create."""

    code = errors.StripeObjectUnreadable.code
    reason = errors.StripeObjectUnreadable.reason


class CannotApply(errors.StripeObjectUnreadable):
    """The object cannot be interpreted as a whole; an operator removes the cause and replays the event.

    `standing` has what can be: it is applied all the same (`apply_standing`).
    """

    def __init__(self, message: str, standing: stripe_subscriptions.Standing | None = None, field: str = "") -> None:
        about = "" if standing is None else f"subscription {standing.subscription_id}"
        super().__init__(message, {"object": about, "field": field})
        self.standing = standing


async def apply(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    fetched: stripe_subscriptions.StripeSubscription,
    origin: audit_store.Origin,
    now: datetime,
) -> str:
    """Write a fetched subscription and its audit entry; returns the account. Raises NotOurs or CannotApply."""
    account_id = await customers_store.account_of_customer(conn, fetched.customer_id)
    if account_id is None:
        raise NotOurs(f"customer {fetched.customer_id} is not ours")
    sold = await prices.sold_prices(conn, [item.price_id for item in fetched.items])
    ours = [(item, sold[item.price_id]) for item in fetched.items if item.price_id in sold]
    if not ours:
        raise CannotApply(f"no price of subscription {fetched.subscription_id} is from a catalog of ours", fetched)
    # A plan subscription has exactly one base price; a metered-only subscription has only pay-as-you-go's prices.
    item, price = next(((item, price) for item, price in ours if price.price), ours[0])
    unknown = [item.price_id for item in fetched.items if item.price_id not in sold]
    if unknown and not price.price:
        # The unknown price may be its base price; treated as metered-only, the subscription would lose its plan.
        message = f"price {unknown[0]} of subscription {fetched.subscription_id} is from no catalog of ours"
        raise CannotApply(message, fetched)
    if fetched.status not in _KNOWN_STATUSES:
        _log.warning("unknown_subscription_status", status=fetched.status, subscription=fetched.subscription_id)
    await accounts_store.insert_missing(conn, {account_id}, now)
    await accounts_store.lock(conn, account_id)
    previous = await subscription_records.find(conn, account_id, fetched.subscription_id)
    given = None if previous is None else rules.Interval(previous.effective_from, previous.effective_until)
    version = await _sold_version(conn, catalogs, fetched, price)
    if previous is not None and (previous.plan, previous.price) == (price.plan, price.price):
        # It may have been moved to a newer catalog version, which Stripe does not know.
        version = max(version, previous.catalog_version)
    policy = rules.PausePolicy.of(await catalogs.get(conn, version))
    interval = rules.interval_in_force(fetched, given, item.period_end, now, policy)
    superfluous = previous is not None and previous.superfluous
    if superfluous:
        interval = rules.Interval(interval.start, interval.start)
    record = subscription_records.SubscriptionRecord(
        account_id=account_id,
        subscription_id=fetched.subscription_id,
        customer_id=fetched.customer_id,
        status=fetched.status,
        is_plan=bool(price.price),
        plan=price.plan,
        price=price.price,
        catalog_version=version,
        quantity=item.quantity,
        anchor=fetched.anchor,
        billing_period_start=item.period_start,
        billing_period_end=item.period_end,
        trial_end=fetched.trial_end,
        cancel_at_period_end=fetched.cancel_at_period_end,
        cancel_at=fetched.cancel_at,
        ended_at=fetched.ended_at,
        effective_from=interval.start,
        effective_until=interval.end,
        checkout_id=fetched.metadata.get("checkout_id"),
        superfluous=superfluous,
        schedule_id=fetched.schedule_id,
        **_pauses(fetched, previous, now),
    )
    await _save(conn, await _with_pending_change(conn, record, fetched.next_phase), origin, now)
    return account_id


async def apply_standing(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    standing: stripe_subscriptions.Standing,
    origin: audit_store.Origin,
    now: datetime,
) -> str:
    """Write what needs no price to the row of a subscription that cannot be applied as a whole; returns its account.

    Plan, price and quantity stay as they are. Without a row nothing is written: a subscription that was never
    understood gives no plan. Raises NotOurs.
    """
    account_id = await customers_store.account_of_customer(conn, standing.customer_id)
    if account_id is None:
        raise NotOurs(f"customer {standing.customer_id} is not ours")
    await accounts_store.insert_missing(conn, {account_id}, now)
    await accounts_store.lock(conn, account_id)
    row = await subscription_records.find(conn, account_id, standing.subscription_id)
    if row is None:
        return account_id
    policy = rules.PausePolicy.of(await catalogs.get(conn, row.catalog_version))
    given = rules.Interval(row.effective_from, row.effective_until)
    interval = rules.interval_in_force(standing, given, row.billing_period_end, now, policy)
    changed = replace(
        row,
        status=standing.status,
        cancel_at_period_end=standing.cancel_at_period_end,
        cancel_at=standing.cancel_at,
        ended_at=standing.ended_at,
        effective_until=row.effective_until if row.superfluous else interval.end,
        schedule_id=standing.schedule_id,
        **_pauses(standing, row, now),
    )
    await _save(conn, changed, origin, now)
    return account_id


def _pauses(
    standing: stripe_subscriptions.Standing, previous: subscription_records.SubscriptionRecord | None, now: datetime
) -> dict[str, Any]:
    """Return the columns of a record that have its pauses."""
    before = None if previous is None else previous.overage_denied_from
    return {
        "collection_pause": standing.collection_pause,
        "collection_resumes_at": standing.collection_resumes_at,
        "pause_reason": standing.pause_reason if standing.is_paused else None,
        "overage_denied_from": rules.overage_denied_from(standing, before, now),
    }


async def _save(
    conn: AsyncConnection, record: subscription_records.SubscriptionRecord, origin: audit_store.Origin, now: datetime
) -> None:
    """Write a record; if that changes anything, its audit entry and its consequences too."""
    if not await subscription_records.save(conn, record, now):
        return
    await gauges_store.reopen(conn, record.account_id, now)
    changes = {
        "subscription": record.subscription_id,
        "status": record.status,
        "plan": record.plan,
        "quantity": record.quantity,
        "until": record.effective_until.isoformat() if record.effective_until else None,
        **({} if record.collection_pause is None else {"collection_pause": record.collection_pause}),
        **({} if record.pause_reason is None else {"pause_reason": record.pause_reason}),
    }
    await audit_store.append(conn, origin, record.account_id, "subscription.applied", changes, now)
    if record.ended_at is not None:
        # After this time the follow-up checks that all usage was charged, also that of an earlier plan; it is not
        # overdue before.
        at = record.ended_at + charge_unbilled.SETTLED_AFTER
        await follow_up_queue.add(conn, record.account_id, record.subscription_id, at, at)
    await consequences.apply(conn, origin, record.account_id, now)


async def _with_pending_change(
    conn: AsyncConnection, record: subscription_records.SubscriptionRecord, phase: stripe_subscriptions.Phase | None
) -> subscription_records.SubscriptionRecord:
    """Return a record with the pending change of the subscription's schedule, if that has a price of our catalog."""
    sold = await prices.sold_prices(conn, list(phase.prices)) if phase is not None and not record.is_over else {}
    base = next((price for price in sold.values() if price.price), None)
    if phase is None or base is None:
        return record
    coming = phase.prices[base.price_id]
    if (base.plan, base.price, coming) == (record.plan, record.price, record.quantity):
        return record
    return replace(
        record,
        pending_plan=base.plan,
        pending_price=base.price,
        pending_quantity=coming,
        pending_at=phase.starts_at,
    )


async def _sold_version(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    fetched: stripe_subscriptions.StripeSubscription,
    price: prices.SoldPrice,
) -> int:
    """Return the catalog version of the sale: from our checkout's metadata, else the first version of its price."""
    noted = fetched.metadata.get("catalog_version", "")
    if noted.isdecimal() and len(noted) < 10:  # noqa: PLR2004 - the digits of an int32
        try:
            catalog = await catalogs.get(conn, int(noted))
        except LookupError:
            return price.catalog_version
        if price.plan in catalog.plans:
            return int(noted)
    return price.catalog_version
