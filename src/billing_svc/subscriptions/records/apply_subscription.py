"""Updates a subscription's row from Stripe's object. Events and RPCs both use it; nothing else writes these fields."""

from dataclasses import dataclass, replace
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
from billing_svc.stripe import prices, sold_items, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import (
    consequences,
    items_as_sold,
    keep_history,
    note_findings,
    rules,
    settlement,
)

_log = structlog.get_logger(__name__)

_KNOWN_STATUSES = stripe_subscriptions.GIVING | rules.SUSPENDED | rules.STILLBORN | stripe_subscriptions.OVER


class NotOurs(errors.BillingError):
    """The object belongs to a customer that this service did not create, or sells nothing of a catalog of ours."""

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
    if not fetched.items:
        raise CannotApply(f"subscription {fetched.subscription_id} has no items", fetched, "items.data")
    items = await sold_items.read(conn, fetched, now)
    if not items.is_ours and await subscription_records.find(conn, account_id, fetched.subscription_id) is None:
        if "catalog_version" in fetched.metadata:  # this service sold it
            raise CannotApply(f"no price of subscription {fetched.subscription_id} is from a catalog of ours", fetched)
        raise NotOurs(f"subscription {fetched.subscription_id} sells nothing of a catalog of ours")
    if fetched.status not in _KNOWN_STATUSES:
        _log.warning("unknown_subscription_status", status=fetched.status, subscription=fetched.subscription_id)
    await accounts_store.insert_missing(conn, {account_id}, now)
    await accounts_store.lock(conn, account_id)
    previous = await subscription_records.find(conn, account_id, fetched.subscription_id)
    offer = await _offer(conn, catalogs, fetched, items, previous)
    given = None if previous is None else rules.Interval(previous.effective_from, previous.effective_until)
    catalog = await catalogs.get(conn, offer.catalog_version)
    period_end = fetched.earliest_period_end or offer.period_end
    interval = rules.interval_in_force(fetched, given, period_end, now, rules.PausePolicy.of(catalog))
    superfluous = previous is not None and previous.superfluous
    if superfluous:
        interval = rules.Interval(interval.start, interval.start)
    check = items_as_sold.compare(items, catalog, catalog.plan(offer.plan), is_plan=offer.is_plan)
    moved_at = await keep_history.keep(conn, catalogs, origin, previous, fetched.anchor, offer.period_start, now)
    record = subscription_records.SubscriptionRecord(
        account_id=account_id,
        subscription_id=fetched.subscription_id,
        customer_id=fetched.customer_id,
        status=fetched.status,
        is_plan=offer.is_plan,
        plan=offer.plan,
        price=offer.price,
        catalog_version=offer.catalog_version,
        quantity=offer.quantity,
        anchor=fetched.anchor,
        billing_period_start=offer.period_start,
        billing_period_end=offer.period_end,
        trial_end=fetched.trial_end,
        cancel_at_period_end=fetched.cancel_at_period_end,
        cancel_at=fetched.cancel_at,
        ended_at=fetched.ended_at,
        effective_from=interval.start,
        effective_until=interval.end,
        checkout_id=fetched.metadata.get("checkout_id"),
        superfluous=superfluous,
        schedule_id=fetched.schedule_id,
        moved_at=moved_at,
        custom_price_id=offer.custom_price_id,
        missing_meters=" ".join(check.missing),
        extra_meters=" ".join(check.extra),
        items_since=settlement.items_since(previous, offer.plan, [one.item.created for one in items.metered], now),
        **_pauses(fetched, previous, now),
    )
    record = replace(record, settle_at=settlement.settle_at(previous, record, now))
    await _save(conn, await _with_pending_change(conn, record, fetched.next_phase), origin, now)
    await note_findings.note(conn, catalogs, record, items, check, now)
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
    changed = replace(changed, settle_at=settlement.settle_at(row, changed, now))
    await _save(conn, changed, origin, now)
    await note_findings.note_standing(conn, catalogs, changed, now)
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
    await consequences.apply(conn, origin, record.account_id, now)


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a subscription sells, and the billing period of the item that sells it."""

    is_plan: bool
    plan: str
    price: str
    custom_price_id: str | None
    catalog_version: int
    quantity: int
    period_start: datetime
    period_end: datetime


async def _offer(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    fetched: stripe_subscriptions.StripeSubscription,
    items: sold_items.SoldItems,
    previous: subscription_records.SubscriptionRecord | None,
) -> _Offer:
    """Return what a subscription sells: the plan of its base item, else the metered prices of pay-as-you-go.

    Raises CannotApply.
    """
    is_metered_only = bool(items.metered) and all(item.price.is_metered for item in items.strangers)
    had_plan = previous is not None and previous.is_plan
    if not items.bases and (had_plan or not is_metered_only):
        # The base item was removed, or replaced by an item that is not ours. Treated as metered-only, the subscription
        # would lose its plan, and the worker would end it.
        if previous is None:
            unknown = items.strangers[0].price_id
            message = f"price {unknown} of subscription {fetched.subscription_id} is from no catalog of ours"
            raise CannotApply(message, fetched)
        billed = items.metered[0].item if items.metered else None
        return _Offer(
            previous.is_plan,
            previous.plan,
            previous.price,
            previous.custom_price_id,
            previous.catalog_version,
            previous.quantity,
            previous.billing_period_start if billed is None else billed.period_start,
            previous.billing_period_end if billed is None else billed.period_end,
        )
    sold = items.bases[0] if items.bases else items.metered[0]
    price, item = sold.price, sold.item
    version = await _sold_version(conn, catalogs, fetched, price, previous)
    if previous is not None and previous.plan == price.plan:
        # It may have been moved to a newer catalog version, which Stripe does not know.
        version = max(version, previous.catalog_version)
    return _Offer(
        price.is_base,
        price.plan,
        price.price,
        price.price_id if price.is_base and price.by_hand else None,
        version,
        item.quantity,
        item.period_start,
        item.period_end,
    )


async def _with_pending_change(
    conn: AsyncConnection, record: subscription_records.SubscriptionRecord, phase: stripe_subscriptions.Phase | None
) -> subscription_records.SubscriptionRecord:
    """Return a record with the pending change of the subscription's schedule, if that has a price of our catalog."""
    sold = await prices.sold_prices(conn, list(phase.prices)) if phase is not None and not record.is_over else {}
    base = next((price for price in sold.values() if price.is_base), None)
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
    previous: subscription_records.SubscriptionRecord | None,
) -> int:
    """Return the catalog version of the sale: from our checkout's metadata, else the first version of its price.

    A price made by hand was in no version: it is sold on the terms that are the newest when it is first seen.
    """
    noted = fetched.metadata.get("catalog_version", "")
    if noted.isdecimal() and len(noted) < 10:  # noqa: PLR2004 - the digits of an int32
        try:
            catalog = await catalogs.get(conn, int(noted))
        except LookupError:
            return price.catalog_version
        if price.plan in catalog.plans:
            return int(noted)
    if price.by_hand and (previous is None or previous.plan != price.plan):
        newest = await versions.newest_published(conn)
        if price.plan in (await catalogs.get(conn, newest)).plans:
            return newest
    return price.catalog_version
