"""The effects of a changed subscription on the account's other subscriptions, in the transaction that applies it.

The result does not depend on the order in which an account's subscriptions are applied: of two bought plans the first
stays, and pay-as-you-go without a plan ends when there is a plan.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.stripe import subscription_records
from billing_svc.subscriptions.records import follow_up_queue

_log = structlog.get_logger(__name__)

# A metered-only subscription exists shortly before pay-as-you-go is switched on; its event may arrive in between.
SWITCHING = timedelta(minutes=1)


async def apply(conn: AsyncConnection, origin: audit_store.Origin, account_id: str, now: datetime) -> None:
    """Mark plans that were bought twice, switch off replaced pay-as-you-go, and store the follow-ups at Stripe."""
    rows = await subscription_records.of_account(conn, account_id)
    for row in _bought_twice(rows):
        await subscription_records.mark_superfluous(conn, account_id, row.subscription_id, now)
        await follow_up_queue.add(conn, account_id, row.subscription_id, now, now)
        _log.warning("bought_twice", account=account_id, subscription=row.subscription_id)
        changes = {"subscription": row.subscription_id, "plan": row.plan, "checkout": row.checkout_id}
        await audit_store.append(conn, origin, account_id, "subscription.superfluous", changes, now)
        rows = await subscription_records.of_account(conn, account_id)
    under = await accounts_store.pay_as_you_go_under(conn, account_id)
    has_plan = any(row.gives_plan(now) for row in rows)
    switched = next((row for row in rows if row.subscription_id == under), None)
    if switched is not None and (switched.is_over or (has_plan and not switched.is_plan)):
        await accounts_store.set_pay_as_you_go(conn, account_id, None)
        off = {"enabled": False, "subscription": switched.subscription_id}
        await audit_store.append(conn, origin, account_id, "pay_as_you_go.switched", off, now)
        under = None
    for row in rows:
        if row.is_plan or row.is_over:
            continue
        if has_plan:
            await follow_up_queue.add(conn, account_id, row.subscription_id, now, now)
        elif row.subscription_id != under and not row.will_end:
            await follow_up_queue.add(conn, account_id, row.subscription_id, now + SWITCHING, now)


def _bought_twice(
    rows: Sequence[subscription_records.SubscriptionRecord],
) -> list[subscription_records.SubscriptionRecord]:
    """Return subscriptions of checkouts that were paid while that of an earlier checkout was in force.

    A subscription that was made in another way ends no other, and is not ended: a person decides.
    """
    giving = [row for row in rows if row.is_plan and row.is_giving and not row.superfluous and row.checkout_id]
    first = min(giving, key=lambda row: (row.effective_from, row.subscription_id), default=None)
    return [row for row in giving if row is not first]
