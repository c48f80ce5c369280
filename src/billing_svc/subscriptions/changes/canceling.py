"""Ending a plan subscription, at its period's end or now, and taking an end back that has not come yet."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import errors, request_ids
from billing_svc.platform.audit import store as audit_store
from billing_svc.stripe import client, requests
from billing_svc.subscriptions.changes import carrying
from billing_svc.subscriptions.records import refreshing
from billing_svc.subscriptions.records import rules as subscriptions_rules


@dataclass(frozen=True, slots=True)
class Ending:
    """What is asked: to end a subscription, at its period's end or now."""

    account_id: str
    request_id: str
    at_period_end: bool


class Canceling:
    """Ends subscriptions, and resumes them."""

    def __init__(self, carrier: carrying.Carrier) -> None:
        self._carrier = carrier

    async def cancel(self, ending: Ending, origin: audit_store.Origin) -> None:
        """End the account's plan subscription; one that is ending that way already is left as it is.

        Raises NotSubscribed, RequestIdReused, UsageNotReported, StripeUnavailable, StripeRefused and LostRace.
        """
        asked = request_ids.Asked(
            ending.account_id, ending.request_id, "cancel", {"at_period_end": ending.at_period_end}
        )
        now = self._carrier.clock.now()

        async def begin(conn: AsyncConnection) -> request_ids.Remembered:
            known = await request_ids.find(conn, asked)
            if known is not None:
                return known
            row = await carrying.held(conn, ending.account_id, now)
            target = {"subscription_id": row.subscription_id}
            await request_ids.remember(conn, asked, target, now)
            changes = {"subscription": row.subscription_id, "at_period_end": ending.at_period_end}
            await audit_store.append(conn, origin, ending.account_id, "subscription.cancel_requested", changes, now)
            return request_ids.Remembered(target, None, is_closed=False)

        known = await self._carrier.database.run(begin)
        if known.is_closed:
            return
        subscription_id = str(known.target["subscription_id"])
        fetched = await self._carrier.fetch(subscription_id)
        if fetched is not None:
            await self._end(ending, fetched)
        await self._carrier.finish(asked, subscription_id, origin)

    async def _end(self, ending: Ending, fetched: subscriptions_rules.StripeSubscription) -> None:
        account_id, purpose = ending.account_id, f"cancel:{ending.request_id}"
        params: dict[str, object] = {"subscription": fetched.subscription_id}
        if ending.at_period_end:
            if fetched.will_end:
                return
            operation = "subscriptions.update"
            # As the portal does it; right in both of Stripe's billing modes.
            params["cancel_at"] = int(min(item.period_end for item in fetched.items).timestamp())
        else:
            # Each unit is on the last invoice, which is made now.
            await self._carrier.flush.flush(account_id)
            operation = "subscriptions.cancel"
            params |= {"invoice_now": True, "prorate": False}
        await self._carrier.release_schedule(account_id, fetched.schedule_id, purpose)

        async def look_up(_since: datetime) -> client.Data | None:
            data = await self._carrier.stripe.subscription(fetched.subscription_id)
            found = refreshing.read(data)
            return data if found.is_over or (ending.at_period_end and found.will_end) else None

        try:
            await self._carrier.requests.perform(requests.Intent(account_id, purpose, operation, params), look_up)
        except (client.NotAtStripe, errors.StripeRefused):
            # Stripe says so of one that is over: by an attempt whose answer was lost, or by others.
            if await self._carrier.fetch(fetched.subscription_id) is not None:
                raise

    async def resume(self, account_id: str, request_id: str, origin: audit_store.Origin) -> None:
        """Take back an end that has not come yet.

        Raises NotSubscribed, NotCanceling, RequestIdReused, StripeUnavailable, StripeRefused and LostRace.
        """
        asked = request_ids.Asked(account_id, request_id, "resume", {})
        now = self._carrier.clock.now()

        async def look(conn: AsyncConnection) -> tuple[str, request_ids.Remembered | None]:
            known = await request_ids.find(conn, asked)
            if known is not None:
                return str(known.target["subscription_id"]), known
            return (await carrying.held(conn, account_id, now)).subscription_id, None

        subscription_id, known = await self._carrier.database.read(look)
        if known is not None and known.is_closed:
            return
        fetched = await self._carrier.fetch(subscription_id)
        if fetched is None:
            raise carrying.not_subscribed(account_id)
        if known is None:
            await self._remember_resume(asked, fetched, origin, now)
        purpose = f"resume:{request_id}"
        if fetched.will_end:
            await self._carrier.release_schedule(account_id, fetched.schedule_id, purpose)
            await self._carrier.keep(account_id, fetched, purpose)
        await self._carrier.finish(asked, subscription_id, origin)

    async def _remember_resume(
        self,
        asked: request_ids.Asked,
        fetched: subscriptions_rules.StripeSubscription,
        origin: audit_store.Origin,
        now: datetime,
    ) -> None:
        if not fetched.will_end:
            message = "the subscription is not going to end, so there is nothing to resume"
            raise errors.NotCanceling(message, {"account_id": asked.account_id})

        async def remember(conn: AsyncConnection) -> None:
            if await request_ids.find(conn, asked) is not None:
                return
            await request_ids.remember(conn, asked, {"subscription_id": fetched.subscription_id}, now)
            changes = {"subscription": fetched.subscription_id}
            await audit_store.append(conn, origin, asked.account_id, "subscription.resume_requested", changes, now)

        await self._carrier.database.run(remember)
