"""Opens and closes the findings about a subscription that was just applied, and about its account's subscriptions."""

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform.findings import store
from billing_svc.platform.findings.store import Kind, NewFinding
from billing_svc.stripe import sold_items, subscription_records
from billing_svc.subscriptions.records import items_as_sold
from billing_svc.usage_export import shared_meters


async def note(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    applied: subscription_records.SubscriptionRecord,
    items: sold_items.SoldItems,
    check: items_as_sold.ItemsCheck,
    now: datetime,
) -> None:
    """Write the findings of a subscription; `check` says how its items differ from the plan as sold."""
    account_id = applied.account_id
    rows = await subscription_records.of_account(conn, account_id)
    row = next(one for one in rows if one.subscription_id == applied.subscription_id)
    concerns = not row.is_over and not row.superfluous
    await _note(conn, row, Kind.ITEMS_DIFFER, _items_differ(row, items, check) if concerns else None, now)
    await _note(conn, row, Kind.TWO_PLANS, _two_plans(row, items) if concerns else None, now)
    await _note_two_subscriptions(conn, account_id, rows, row.customer_id, now)
    extra_since = {
        (row.subscription_id, one.price.stripe_event_name or ""): datetime.fromtimestamp(one.item.created, UTC)
        for one in sorted(items.metered, key=lambda one: one.item.created)
        if one.item.created
    }
    await shared_meters.note(conn, catalogs, account_id, extra_since, now)
    if row.superfluous and row.is_over:
        await shared_meters.note_end(conn, catalogs, row, now)


async def note_standing(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    applied: subscription_records.SubscriptionRecord,
    now: datetime,
) -> None:
    """Write what is known of the findings of a subscription whose items cannot be read: its end settles them."""
    if applied.is_over:
        await store.settle(conn, applied.account_id, Kind.ITEMS_DIFFER, applied.subscription_id, now)
        await store.settle(conn, applied.account_id, Kind.TWO_PLANS, applied.subscription_id, now)
        if applied.superfluous:
            await shared_meters.note_end(conn, catalogs, applied, now)
    rows = await subscription_records.of_account(conn, applied.account_id)
    await _note_two_subscriptions(conn, applied.account_id, rows, applied.customer_id, now)


async def _note(
    conn: AsyncConnection,
    row: subscription_records.SubscriptionRecord,
    kind: Kind,
    found: NewFinding | None,
    now: datetime,
) -> None:
    if found is None:
        await store.settle(conn, row.account_id, kind, row.subscription_id, now)
    else:
        await store.report(conn, row.account_id, found, now)


def _items_differ(
    row: subscription_records.SubscriptionRecord, items: sold_items.SoldItems, check: items_as_sold.ItemsCheck
) -> NewFinding | None:
    differences = list(check.differences)
    if row.is_plan and not items.bases:
        differences.insert(0, f"no item has a price of plan {row.plan}")
    if not differences:
        return None
    return NewFinding(
        Kind.ITEMS_DIFFER,
        row.subscription_id,
        f"differs from plan {row.plan} as sold: {'; '.join(differences)}",
        "ChangePlan to the plan that the account has puts the items right, or mend them at Stripe",
    )


def _two_plans(row: subscription_records.SubscriptionRecord, items: sold_items.SoldItems) -> NewFinding | None:
    if len(items.bases) < 2:  # noqa: PLR2004 - as the name says
        return None
    plans = ", ".join(f"{one.price.plan} (price {one.item.price_id})" for one in items.bases)
    return NewFinding(
        Kind.TWO_PLANS,
        row.subscription_id,
        f"charges several base items: {plans}; the plan is {row.plan}, whose item was added last",
        "ChangePlan leaves only the plan that it names, or remove an item at Stripe",
    )


async def _note_two_subscriptions(
    conn: AsyncConnection,
    account_id: str,
    rows: list[subscription_records.SubscriptionRecord],
    customer_id: str,
    now: datetime,
) -> None:
    living = [
        one for one in rows if one.customer_id == customer_id and one.is_plan and one.is_giving and not one.superfluous
    ]
    if len(living) < 2:  # noqa: PLR2004 - as the name says
        await store.settle(conn, account_id, Kind.TWO_SUBSCRIPTIONS, customer_id, now)
        return
    told = " and ".join(f"{one.subscription_id} ({one.plan})" for one in living)
    finding = NewFinding(
        Kind.TWO_SUBSCRIPTIONS,
        customer_id,
        f"pays for several live plan subscriptions: {told}; the plan is that of {living[0].subscription_id}",
        f"`billing-svc account end-subscription {account_id} SUBSCRIPTION` ends either",
    )
    await store.report(conn, account_id, finding, now)
