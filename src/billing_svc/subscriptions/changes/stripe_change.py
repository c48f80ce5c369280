"""Steps that all changes share: find the subscription, release its schedule, remove a scheduled end, finish."""

import contextlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import client, intents, same_account, sold_items, subscription_records
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.invoices import way_out
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription
from billing_svc.usage_export import export_now

# The operation that makes this service's schedules.
MAKE_SCHEDULE = "subscription_schedules.create"


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

        Raises CannotApply, and StripeAccountMismatch if Stripe has none of our objects.
        """
        try:
            fetched = await refresh_subscription.fetch(self.stripe, subscription_id)
        except client.NotAtStripe:
            await same_account.require(self.database, self.stripe, subscription_id)
            return None
        return None if await self._is_over(fetched) else fetched

    async def sold_items(self, fetched: stripe_subscriptions.StripeSubscription) -> sold_items.SoldItems:
        """Return a fetched subscription's items by what they are to us."""
        now = self.clock.now()
        return await self.database.run(lambda conn: sold_items.read(conn, fetched, now))

    async def fetch_standing(self, subscription_id: str) -> stripe_subscriptions.Standing | None:
        """Return what `fetch` returns, or only what needs no price if the other fields cannot be read or applied."""
        try:
            return await self.fetch(subscription_id)
        except apply_subscription.CannotApply as error:
            if error.standing is None:
                raise
            return None if await self._is_over(error.standing) else error.standing

    async def _is_over(self, fetched: stripe_subscriptions.Standing) -> bool:
        if fetched.is_over:
            # If it cannot be applied as a whole, its end is applied all the same.
            with contextlib.suppress(apply_subscription.CannotApply):
                await self.refresher.refresh(fetched.subscription_id, audit_store.Origin("service"))
        return fetched.is_over

    async def is_foreign(self, account_id: str, fetched: stripe_subscriptions.Standing) -> bool:
        """Say whether a subscription has a schedule that this service did not make."""
        schedule_id = fetched.schedule_id
        if schedule_id is None:
            return False
        made_from, since = {"from_subscription": fetched.subscription_id}, self.clock.now() - intents.KEY_TRUSTED_FOR
        return not await self.database.read(
            lambda conn: intents.has_made(conn, account_id, MAKE_SCHEDULE, schedule_id, made_from, since)
        )

    async def require_own_schedule(
        self, account_id: str, fetched: stripe_subscriptions.Standing, *, may_release_foreign: bool
    ) -> None:
        """Raise ForeignSchedule if the change would end someone else's schedule, and the request does not allow it."""
        if may_release_foreign or not await self.is_foreign(account_id, fetched):
            return
        schedule_id = fetched.schedule_id or ""
        raise errors.ForeignSchedule(
            f"the subscription has a schedule at Stripe that this service did not make ({schedule_id}); the change "
            "would end it, with its later phases and discounts; repeat with release_foreign_schedule to allow that",
            {"account_id": account_id, "subscription_id": fetched.subscription_id, "schedule_id": schedule_id},
        )

    async def release_schedule(
        self, account_id: str, fetched: stripe_subscriptions.Standing, purpose: str, origin: audit_store.Origin
    ) -> None:
        """Release a subscription's schedule, if it has one, so that its pending change is not made.

        Call `require_own_schedule` before. The release of someone else's schedule has an audit entry.
        """
        schedule_id = fetched.schedule_id
        if schedule_id is None:
            return
        if await self.is_foreign(account_id, fetched):
            now, changes = self.clock.now(), {"subscription": fetched.subscription_id, "schedule": schedule_id}
            action = "subscription.foreign_schedule_released"
            await self.database.run(lambda conn: audit_store.append(conn, origin, account_id, action, changes, now))

        async def look_up(_since: datetime) -> client.Data | None:
            schedule = await self.stripe.schedule(schedule_id)
            return schedule if schedule.get("status") in {"released", "canceled", "completed"} else None

        intent = intents.Intent(
            account_id, f"{purpose}:release:{schedule_id}", "subscription_schedules.release", {"schedule": schedule_id}
        )
        # A schedule that Stripe no longer has, or that is finished, does not block the change.
        with contextlib.suppress(errors.StripeRefused, client.NotAtStripe):
            await self.requests.perform(intent, look_up)

    async def way_out(self, account_id: str, subscription_id: str) -> way_out.WayOut:
        """Return what a caller can do about a subscription that is unpaid, incomplete or paused."""

        async def read(conn: AsyncConnection) -> way_out.WayOut:
            row = await subscription_records.find(conn, account_id, subscription_id)
            return way_out.NONE if row is None else await way_out.read(conn, row)

        return await self.database.read(read)

    async def keep(self, account_id: str, fetched: stripe_subscriptions.Standing, purpose: str) -> None:
        """Remove a subscription's scheduled end, if it has one."""
        if not fetched.will_end:
            return

        async def look_up(_since: datetime) -> client.Data | None:
            data = await self.stripe.subscription(fetched.subscription_id)
            return None if stripe_subscriptions.standing(data).will_end else data

        # Stripe clears both fields if `cancel_at_period_end` was used, and accepts only one of the two in a call.
        kept = {"cancel_at_period_end": False} if fetched.cancel_at_period_end else {"cancel_at": ""}
        params = {"subscription": fetched.subscription_id, **kept}
        await self.requests.perform(intents.Intent(account_id, purpose, "subscriptions.update", params), look_up)

    async def finish(
        self,
        asked: request_ids.CallerRequest,
        target: Mapping[str, Any],
        origin: audit_store.Origin,
        answer: Mapping[str, Any] | None = None,
    ) -> None:
        """Update the stored row from Stripe, and close the request with its target and answer.

        Stripe has made the change by now. If the subscription cannot be applied as a whole, the fields that need no
        price are applied; the worker's event and the comparison report the rest.
        """
        with contextlib.suppress(client.NotAtStripe, apply_subscription.CannotApply, apply_subscription.NotOurs):
            await self.refresher.refresh(target["subscription_id"], origin)
        now = self.clock.now()
        await self.database.run(lambda conn: request_ids.close(conn, asked, now, target, answer))


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
