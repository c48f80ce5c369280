"""Fetches a subscription and applies it immediately, for callers that have just changed it at Stripe."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, leases
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import apply_subscription

# A worker holds an object's lease for a fetch and a transaction, usually a fraction of a second; a longer wait would
# use up the time of the caller's own call.
WAIT_SECONDS_MAX = 3.0
POLL_SECONDS = 0.05


class Refresher:
    """Updates stored subscriptions from Stripe, under the object's lease, as the inbox does."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
        wait_seconds_max: float = WAIT_SECONDS_MAX,
    ) -> None:
        """`wait_seconds_max` bounds the wait for another holder of the subscription's lease."""
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._clock = now
        self._wait_seconds_max = wait_seconds_max

    async def refresh(self, subscription_id: str, origin: audit_store.Origin) -> str:
        """Fetch a subscription and apply it; returns its account. Audit entries have the given origin.

        Its waiting events stay, and later find nothing to change. Raises LostRace if others hold the subscription's
        lease until the wait ends, StripeUnavailable, NotAtStripe, NotOurs and CannotApply; then the worker updates the
        row when the event arrives. Before CannotApply, what needs no price is applied.
        """
        give_up_at = asyncio.get_running_loop().time() + self._wait_seconds_max
        while asyncio.get_running_loop().time() < give_up_at:
            lease = await self._take(subscription_id)
            if lease is not None:
                try:
                    return await self._apply(lease, origin)
                except leases.Overtaken:
                    continue
                except BaseException:
                    await self._give_back(lease)
                    raise
            await asyncio.sleep(POLL_SECONDS)
        raise errors.LostRace("another process is updating the subscription; send the same call again")

    async def fetch(self, subscription_id: str) -> stripe_subscriptions.StripeSubscription:
        """Return a subscription as Stripe has it, without writing anything. Raises what the function `fetch` raises."""
        return await fetch(self._stripe, subscription_id)

    async def _take(self, subscription_id: str) -> leases.Lease | None:
        now = self._clock.now()
        return await self._database.run(lambda conn: leases.take(conn, subscription_id, now))

    async def _apply(self, lease: leases.Lease, origin: audit_store.Origin) -> str:
        try:
            fetched = await fetch(self._stripe, lease.object_id)
            now = self._clock.now()
            return await self._finish(
                lease, lambda conn: apply_subscription.apply(conn, self._catalogs, fetched, origin, now)
            )
        except apply_subscription.CannotApply as error:
            standing, now = error.standing, self._clock.now()
            if standing is not None:
                await self._finish(
                    lease, lambda conn: apply_subscription.apply_standing(conn, self._catalogs, standing, origin, now)
                )
            raise

    async def _finish(self, lease: leases.Lease, apply: Callable[[AsyncConnection], Awaitable[str]]) -> str:
        async def finish(conn: AsyncConnection) -> str:
            if not await leases.end(conn, lease, self._clock.now()):
                raise leases.Overtaken
            return await apply(conn)

        return await self._database.run(finish)

    async def _give_back(self, lease: leases.Lease) -> None:
        now = self._clock.now()
        # If the release fails too, the lease expires by itself.
        with contextlib.suppress(errors.BillingError):
            await self._database.run(lambda conn: leases.end(conn, lease, now))


async def fetch(stripe: client.Stripe, subscription_id: str) -> stripe_subscriptions.StripeSubscription:
    """Return a subscription as Stripe has it now. Raises NotAtStripe, CannotApply and the client's errors."""
    return read(await stripe.subscription(subscription_id))


def read(data: client.Data) -> stripe_subscriptions.StripeSubscription:
    """Parse Stripe's subscription. Raises CannotApply, with what needs no price if that can be parsed."""
    try:
        return stripe_subscriptions.from_stripe(data)
    except errors.StripeObjectUnreadable as error:
        raise apply_subscription.CannotApply(error.message, _standing(data), error.metadata["field"]) from error


def _standing(data: client.Data) -> stripe_subscriptions.Standing | None:
    try:
        return stripe_subscriptions.standing(data)
    except errors.StripeObjectUnreadable:
        return None
