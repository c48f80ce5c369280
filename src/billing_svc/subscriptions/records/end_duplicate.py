"""Ends one of several live plan subscriptions of an account, on an operator's command."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.stripe import subscription_records
from billing_svc.subscriptions.records import follow_up_queue


async def end(
    conn: AsyncConnection, account_id: str, subscription_id: str, origin: audit_store.Origin, now: datetime
) -> str:
    """Let the worker end a subscription beside another, and return "", or why that cannot be done.

    It counts as if it had never given its plan. The worker removes its metered items, so that its last invoice does not
    charge usage that the other charges, cancels it, and credits the unused part of its price.
    """
    await accounts_store.lock(conn, account_id)
    rows = await subscription_records.plan_subscriptions(conn, account_id)
    living = [row for row in rows if not row.is_over and not row.superfluous]
    row = next((one for one in living if one.subscription_id == subscription_id), None)
    if row is None:
        return f"{account_id} has no live plan subscription {subscription_id}"
    if not any(one.is_giving for one in living if one is not row):
        return f"{subscription_id} is the account's only plan subscription; CancelSubscription ends it"
    await subscription_records.mark_superfluous(conn, account_id, subscription_id, now)
    await follow_up_queue.renew(conn, account_id, subscription_id, now)
    changes = {"subscription": subscription_id, "plan": row.plan}
    await audit_store.append(conn, origin, account_id, "subscription.ended_as_duplicate", changes, now)
    return ""
