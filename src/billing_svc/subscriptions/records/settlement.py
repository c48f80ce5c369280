"""When a subscription is to be settled, and since when its metered items are there (ADR 0025). Pure."""

from collections.abc import Collection
from datetime import UTC, datetime

from billing_svc.stripe import subscription_records
from billing_svc.usage_export import charge_unbilled


def items_since(
    previous: subscription_records.SubscriptionRecord | None, plan: str, created: Collection[int], now: datetime
) -> datetime | None:
    """Return since when the subscription's metered items are there, the newest of them; None: since it began.

    `created` are the Unix times of their creation. If another plan's prices have replaced the prices of the same items,
    Stripe does not say when: it counts from when it was noticed.
    """
    newest = datetime.fromtimestamp(max(created, default=0), UTC)
    if previous is None:
        return newest if created else None
    if newest > (previous.items_since or previous.effective_from):
        return newest
    return now.replace(microsecond=0) if plan != previous.plan else previous.items_since


def settle_at(
    previous: subscription_records.SubscriptionRecord | None,
    record: subscription_records.SubscriptionRecord,
    now: datetime,
) -> datetime | None:
    """Return when a subscription is to be settled: some time after the last change that can leave usage uncharged."""
    planned = None if previous is None else previous.settle_at
    is_changed = record.ended_at is not None if previous is None else _billing(previous) != _billing(record)
    return max(planned or now, now + charge_unbilled.SETTLED_AFTER) if is_changed else planned


def _billing(record: subscription_records.SubscriptionRecord) -> tuple[object, ...]:
    """Return the values that say how Stripe bills a subscription's usage."""
    items = (record.plan, record.catalog_version, record.missing_meters, record.extra_meters, record.items_since)
    return (*items, record.moved_at, record.ended_at)
