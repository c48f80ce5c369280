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
    # May end a schedule at Stripe that this service did not make. Not a part of the request's content: the same request
    # is repeated with it after FOREIGN_SCHEDULE.
    release_foreign_schedule: bool = False


@dataclass(frozen=True, slots=True)
class ResumptionRequest:
    """A caller's request to remove the scheduled end; `release_foreign_schedule` as above."""

    account_id: str
    request_id: str
    release_foreign_schedule: bool = False


class Cancellation:
    """Ends subscriptions, and resumes them."""

    def __init__(self, carrier: stripe_change.StripeChange) -> None:
        self._carrier = carrier

    async def cancel(self, ending: EndingRequest, origin: audit_store.Origin) -> None:
        """End the account's plan subscription; if it is scheduled to end that way already, nothing changes.

        Raises NotSubscribed, RequestIdReused, ForeignSchedule, UsageNotReported, StripeUnavailable, StripeRefused,
        StripeObjectUnreadable and LostRace.
        """
        asked = request_ids.CallerRequest(
            ending.account_id, ending.request_id, "cancel", {"at_period_end": ending.at_period_end}
        )
        now = self._carrier.clock.now()

        async def look(conn: AsyncConnection) -> tuple[str, bool]:
            known = await request_ids.find(conn, asked)
            if known is not None and known.is_judged:
                return str(known.target["subscription_id"]), known.is_closed
            return (await stripe_change.held(conn, ending.account_id, now)).subscription_id, False

        subscription_id, is_closed = await self._carrier.database.read(look)
        if is_closed:
            return
        target = {"subscription_id": subscription_id}
        fetched = await self._carrier.fetch_standing(subscription_id)
        if fetched is not None and not (ending.at_period_end and fetched.will_end):
            # Checked before the request is stored, so that a refused request can be repeated with the other answer.
            await self._carrier.require_own_schedule(
                ending.account_id, fetched, may_release_foreign=ending.release_foreign_schedule
            )

        async def begin(conn: AsyncConnection) -> None:
            if not await request_ids.judge(conn, asked, target, now):
                return
            changes = {"subscription": subscription_id, "at_period_end": ending.at_period_end}
            await audit_store.append(conn, origin, ending.account_id, "subscription.cancel_requested", changes, now)

        await self._carrier.database.run(begin)
        if fetched is not None:
            try:
                await self._end(ending, fetched, origin)
            except (errors.StripeRefused, client.NotAtStripe):
                # Nothing was changed, and a repeat may find another subscription.
                await self._carrier.database.run(lambda conn: request_ids.judge_again(conn, asked, target))
                raise
        await self._carrier.finish(asked, target, origin)

    async def _end(
        self, ending: EndingRequest, fetched: stripe_subscriptions.Standing, origin: audit_store.Origin
    ) -> None:
        account_id, purpose = ending.account_id, f"cancel:{ending.request_id}"
        params: dict[str, object] = {"subscription": fetched.subscription_id}
        if ending.at_period_end:
            if fetched.will_end:
                return
            operation = "subscriptions.update"
            # The customer portal sets the same field; it works in both of Stripe's billing modes.
            whole = await refresh_subscription.fetch(self._carrier.stripe, fetched.subscription_id)
            items = await self._carrier.sold_items(whole)
            params["cancel_at"] = int(items.period_end(whole).timestamp())
        else:
            # All usage must be at Stripe before the last invoice, which this call creates immediately.
            await self._carrier.flush.flush(account_id)
            operation = "subscriptions.cancel"
            params |= {"invoice_now": True, "prorate": False}
        await self._carrier.release_schedule(account_id, fetched, purpose, origin)

        async def look_up(_since: datetime) -> client.Data | None:
            data = await self._carrier.stripe.subscription(fetched.subscription_id)
            found = stripe_subscriptions.standing(data)
            return data if found.is_over or (ending.at_period_end and found.will_end) else None

        try:
            await self._carrier.requests.perform(intents.Intent(account_id, purpose, operation, params), look_up)
        except (client.NotAtStripe, errors.StripeRefused) as error:
            # Stripe answers so if the subscription has ended already: by a call whose answer was lost, or by someone
            # else.
            if await self._carrier.fetch_standing(fetched.subscription_id) is not None:
                way_out = await self._carrier.way_out(account_id, fetched.subscription_id)
                if way_out.text:  # Stripe refuses many changes of a subscription that is incomplete or paused
                    metadata = {**error.metadata, **way_out.metadata}
                    raise errors.StripeRefused(f"{error.message}{way_out.text}", metadata) from error
                raise

    async def resume(self, resumption: ResumptionRequest, origin: audit_store.Origin) -> None:
        """Remove the scheduled end of a subscription.

        Raises NotSubscribed, NotCanceling, RequestIdReused, ForeignSchedule, StripeUnavailable, StripeRefused,
        StripeObjectUnreadable and LostRace.
        """
        account_id, request_id = resumption.account_id, resumption.request_id
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
        target = {"subscription_id": subscription_id}
        fetched = await self._carrier.fetch_standing(subscription_id)
        if fetched is None:
            raise stripe_change.not_subscribed(account_id)
        if fetched.will_end:
            await self._carrier.require_own_schedule(
                account_id, fetched, may_release_foreign=resumption.release_foreign_schedule
            )
        if known is None:
            await self._remember_resume(asked, fetched, origin, now)
        purpose = f"resume:{request_id}"
        if fetched.will_end:
            try:
                await self._carrier.release_schedule(account_id, fetched, purpose, origin)
                await self._carrier.keep(account_id, fetched, purpose)
            except (errors.StripeRefused, client.NotAtStripe):
                await self._carrier.database.run(lambda conn: request_ids.judge_again(conn, asked, target))
                raise
        await self._carrier.finish(asked, target, origin)

    async def _remember_resume(
        self,
        asked: request_ids.CallerRequest,
        fetched: stripe_subscriptions.Standing,
        origin: audit_store.Origin,
        now: datetime,
    ) -> None:
        if not fetched.will_end:
            way_out = await self._carrier.way_out(asked.account_id, fetched.subscription_id)
            message = f"the subscription is not going to end, so there is nothing to resume{way_out.text}"
            raise errors.NotCanceling(message, {"account_id": asked.account_id, **way_out.metadata})

        async def remember(conn: AsyncConnection) -> None:
            if not await request_ids.judge(conn, asked, {"subscription_id": fetched.subscription_id}, now):
                return
            changes = {"subscription": fetched.subscription_id}
            await audit_store.append(conn, origin, asked.account_id, "subscription.resume_requested", changes, now)

        await self._carrier.database.run(remember)
