"""Cancels a plan subscription, at its period's end or now, and resumes a subscription that is scheduled to end."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.request_ids import store as request_ids
from billing_svc.stripe import client, intents
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.changes import stripe_change
from billing_svc.subscriptions.records import refresh_subscription


@dataclass(frozen=True, slots=True)
class EndingRequest:
    """A caller's request to end the plan subscription, at its period's end or now."""

    account_id: str
    request_id: str
    at_period_end: bool


class Cancellation:
    """Ends subscriptions, and resumes them."""

    def __init__(self, carrier: stripe_change.StripeChange) -> None:
        self._carrier = carrier

    async def cancel(self, ending: EndingRequest, origin: audit_store.Origin) -> None:
        """End the account's plan subscription; if it is scheduled to end that way already, nothing changes.

        Raises NotSubscribed, RequestIdReused, UsageNotReported, StripeUnavailable, StripeRefused and LostRace.
        """
        asked = request_ids.CallerRequest(
            ending.account_id, ending.request_id, "cancel", {"at_period_end": ending.at_period_end}
        )
        now = self._carrier.clock.now()

        async def begin(conn: AsyncConnection) -> request_ids.RememberedRequest:
            known = await request_ids.find(conn, asked)
            if known is not None and known.is_judged:
                return known
            row = await stripe_change.held(conn, ending.account_id, now)
            target = {"subscription_id": row.subscription_id}
            if known is None:
                await request_ids.remember(conn, asked, target, now)
            else:
                await request_ids.set_target(conn, asked, target)
            changes = {"subscription": row.subscription_id, "at_period_end": ending.at_period_end}
            await audit_store.append(conn, origin, ending.account_id, "subscription.cancel_requested", changes, now)
            return request_ids.RememberedRequest(target, None, is_closed=False)

        known = await self._carrier.database.run(begin)
        if known.is_closed:
            return
        subscription_id = str(known.target["subscription_id"])
        fetched = await self._carrier.fetch(subscription_id)
        if fetched is not None:
            try:
                await self._end(ending, fetched)
            except (errors.StripeRefused, client.NotAtStripe):
                # Nothing was changed, and a repeat may find another subscription.
                await self._carrier.database.run(lambda conn: request_ids.judge_again(conn, asked))
                raise
        await self._carrier.finish(asked, subscription_id, origin)

    async def _end(self, ending: EndingRequest, fetched: stripe_subscriptions.StripeSubscription) -> None:
        account_id, purpose = ending.account_id, f"cancel:{ending.request_id}"
        params: dict[str, object] = {"subscription": fetched.subscription_id}
        if ending.at_period_end:
            if fetched.will_end:
                return
            operation = "subscriptions.update"
            # The customer portal sets the same field; it works in both of Stripe's billing modes.
            params["cancel_at"] = int(min(item.period_end for item in fetched.items).timestamp())
        else:
            # All usage must be at Stripe before the last invoice, which this call creates immediately.
            await self._carrier.flush.flush(account_id)
            operation = "subscriptions.cancel"
            params |= {"invoice_now": True, "prorate": False}
        await self._carrier.release_schedule(account_id, fetched.schedule_id, purpose)

        async def look_up(_since: datetime) -> client.Data | None:
            data = await self._carrier.stripe.subscription(fetched.subscription_id)
            found = refresh_subscription.read(data)
            return data if found.is_over or (ending.at_period_end and found.will_end) else None

        try:
            await self._carrier.requests.perform(intents.Intent(account_id, purpose, operation, params), look_up)
        except (client.NotAtStripe, errors.StripeRefused):
            # Stripe answers so if the subscription has ended already: by a call whose answer was lost, or by someone
            # else.
            if await self._carrier.fetch(fetched.subscription_id) is not None:
                raise

    async def resume(self, account_id: str, request_id: str, origin: audit_store.Origin) -> None:
        """Remove the scheduled end of a subscription.

        Raises NotSubscribed, NotCanceling, RequestIdReused, StripeUnavailable, StripeRefused and LostRace.
        """
        asked = request_ids.CallerRequest(account_id, request_id, "resume", {})
        now = self._carrier.clock.now()

        async def look(conn: AsyncConnection) -> tuple[str, request_ids.RememberedRequest | None]:
            known = await request_ids.find(conn, asked)
            if known is not None and known.is_judged:
                return str(known.target["subscription_id"]), known
            return (await stripe_change.held(conn, account_id, now)).subscription_id, None

        subscription_id, known = await self._carrier.database.read(look)
        if known is not None and known.is_closed:
            return
        fetched = await self._carrier.fetch(subscription_id)
        if fetched is None:
            raise stripe_change.not_subscribed(account_id)
        if known is None:
            await self._remember_resume(asked, fetched, origin, now)
        purpose = f"resume:{request_id}"
        if fetched.will_end:
            try:
                await self._carrier.release_schedule(account_id, fetched.schedule_id, purpose)
                await self._carrier.keep(account_id, fetched, purpose)
            except (errors.StripeRefused, client.NotAtStripe):
                await self._carrier.database.run(lambda conn: request_ids.judge_again(conn, asked))
                raise
        await self._carrier.finish(asked, subscription_id, origin)

    async def _remember_resume(
        self,
        asked: request_ids.CallerRequest,
        fetched: stripe_subscriptions.StripeSubscription,
        origin: audit_store.Origin,
        now: datetime,
    ) -> None:
        if not fetched.will_end:
            message = "the subscription is not going to end, so there is nothing to resume"
            raise errors.NotCanceling(message, {"account_id": asked.account_id})

        async def remember(conn: AsyncConnection) -> None:
            known, target = await request_ids.find(conn, asked), {"subscription_id": fetched.subscription_id}
            if known is not None and known.is_judged:
                return
            if known is None:
                await request_ids.remember(conn, asked, target, now)
            else:
                await request_ids.set_target(conn, asked, target)
            changes = {"subscription": fetched.subscription_id}
            await audit_store.append(conn, origin, asked.account_id, "subscription.resume_requested", changes, now)

        await self._carrier.database.run(remember)
