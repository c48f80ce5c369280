"""Steps that all changes share: find the subscription, release its schedule, remove a scheduled end, finish."""

import contextlib
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import client, intents, same_account, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription
from billing_svc.usage_export import export_now


class StripeChange:
    """Makes changes at Stripe."""

    def __init__(
        self,
        database: transactions.Transactions,
        stripe: client.Stripe,
        refresher: refresh_subscription.Refresher,
        flush: export_now.ExportNow,
        now: clock.Clock,
    ) -> None:
        self.database = database
        self.stripe = stripe
        self.requests = intents.Requests(database, stripe, now)
        self.refresher = refresher
        self.flush = flush
        self.clock = now

    async def fetch(self, subscription_id: str) -> stripe_subscriptions.StripeSubscription | None:
        """Return a subscription as Stripe has it now; None if it is over, which is then stored here too.

        Raises StripeAccountMismatch if Stripe has none of our objects.
        """
        try:
            fetched = await refresh_subscription.fetch(self.stripe, subscription_id)
        except client.NotAtStripe:
            await same_account.require(self.database, self.stripe, subscription_id)
            return None
        if not fetched.is_over:
            return fetched
        await self.refresher.refresh(subscription_id, audit_store.Origin("service"))
        return None

    async def release_schedule(self, account_id: str, schedule_id: str | None, purpose: str) -> None:
        """Release a subscription's schedule, if it has one, so that its pending change is not made."""
        if schedule_id is None:
            return

        async def look_up(_since: datetime) -> client.Data | None:
            schedule = await self.stripe.schedule(schedule_id)
            return schedule if schedule["status"] in {"released", "canceled", "completed"} else None

        intent = intents.Intent(
            account_id, f"{purpose}:release:{schedule_id}", "subscription_schedules.release", {"schedule": schedule_id}
        )
        # A schedule that Stripe no longer has, or that is finished, does not block the change.
        with contextlib.suppress(errors.StripeRefused, client.NotAtStripe):
            await self.requests.perform(intent, look_up)

    async def keep(self, account_id: str, fetched: stripe_subscriptions.StripeSubscription, purpose: str) -> None:
        """Remove a subscription's scheduled end, if it has one."""
        if not fetched.will_end:
            return

        async def look_up(_since: datetime) -> client.Data | None:
            data = await self.stripe.subscription(fetched.subscription_id)
            return None if refresh_subscription.read(data).will_end else data

        # Stripe clears both fields if `cancel_at_period_end` was used, and accepts only one of the two in a call.
        kept = {"cancel_at_period_end": False} if fetched.cancel_at_period_end else {"cancel_at": ""}
        params = {"subscription": fetched.subscription_id, **kept}
        await self.requests.perform(intents.Intent(account_id, purpose, "subscriptions.update", params), look_up)

    async def finish(self, asked: request_ids.CallerRequest, subscription_id: str, origin: audit_store.Origin) -> None:
        """Update the stored row from Stripe, and close the request.

        What Stripe was asked for is done, so nothing that cannot be read here is an error of the request; the worker's
        event reports it.
        """
        with contextlib.suppress(client.NotAtStripe, apply_subscription.CannotApply, apply_subscription.NotOurs):
            await self.refresher.refresh(subscription_id, origin)
        now = self.clock.now()
        await self.database.run(lambda conn: request_ids.close(conn, asked, now))


async def held(conn: AsyncConnection, account_id: str, now: datetime) -> subscription_records.SubscriptionRecord:
    """Return the plan subscription to change: the subscription that gives the plan, else one that is not over.

    Raises NotSubscribed.
    """
    rows = [
        row
        for row in await subscription_records.plan_subscriptions(conn, account_id)
        if not row.is_over and not row.superfluous
    ]
    found = next((row for row in rows if row.gives_plan(now)), rows[0] if rows else None)
    if found is None:
        raise not_subscribed(account_id)
    return found


def not_subscribed(account_id: str) -> errors.NotSubscribed:
    """Return the error for an account without a plan subscription to change."""
    message = "the account has no plan subscription that could be changed; use CreateCheckout"
    return errors.NotSubscribed(message, {"account_id": account_id})
