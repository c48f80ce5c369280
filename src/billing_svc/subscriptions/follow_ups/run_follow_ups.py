"""Doing duties: bringing a subscription at Stripe to how it should stand.

What is wanted is read afresh before each write and after it, so that whatever races, the last switch wins: whoever
finds that his write came late writes again. One who cannot look after his write, because Stripe did not answer or the
process died, leaves it open in `stripe_requests`; then the later duty is not closed before that write has landed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import clock, errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, intents, prices, subscription_records
from billing_svc.subscriptions.follow_ups import rules
from billing_svc.subscriptions.records import apply_subscription, follow_up_queue, refresh_subscription
from billing_svc.usage_export import charge_unbilled, export_now

_log = structlog.get_logger(__name__)

# Taken in one round of the worker.
DUTIES_MAX = 20
# What is wanted changes while it is done only when somebody switches to and fro.
ROUNDS_MAX = 4

ORIGIN = audit_store.Origin("service")


@dataclass(frozen=True, slots=True)
class _Case:
    """A duty, its subscription as it was just fetched, and how that should stand; without a row there is none.

    `plan` is what the account has, by a subscription that stays. `contested`: what became of another write about the
    subscription is not known.
    """

    duty: follow_up_queue.FollowUp
    row: subscription_records.SubscriptionRecord | None
    wanted: rules.WantedState
    plan: str | None
    contested: bool

    @property
    def purpose(self) -> str:
        """Of the write that it takes."""
        return _purpose(self.duty, self.wanted)


class FollowUps:
    """Does what is due."""

    def __init__(
        self,
        database: transactions.Transactions,
        writes: intents.Requests,
        refresher: refresh_subscription.Refresher,
        flush: export_now.ExportNow,
        unbilled_usage: charge_unbilled.UnbilledUsage,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._requests = writes
        self._refresher = refresher
        self._flush = flush
        self._unbilled_usage = unbilled_usage
        self._clock = now

    async def do_due(self) -> int:
        """Do the duties that are due; returns how many were taken. One that fails is tried again later."""
        now = self._clock.now()
        taken = 0
        for account_id, subscription_id in await self._database.read(
            lambda conn: follow_up_queue.due(conn, DUTIES_MAX, now)
        ):
            taken += await self._try(account_id, subscription_id)
        return taken

    async def _try(self, account_id: str, subscription_id: str) -> bool:
        now = self._clock.now()
        if not await self._database.run(lambda conn: follow_up_queue.take(conn, account_id, subscription_id, now)):
            return False
        try:
            await self.do(account_id, subscription_id)
        except errors.BillingError as error:
            note = error.message
            _log.info("duty_postponed", subscription=subscription_id, error=note)
        except apply_subscription.CannotApply as error:
            note = str(error)
            _log.warning("duty_postponed", subscription=subscription_id, error=note)
        else:
            return True
        duty = await self._database.read(lambda conn: follow_up_queue.find(conn, account_id, subscription_id))
        if duty is not None:
            until = rules.retry_at(duty.attempts, self._clock.now())
            await self._database.run(lambda conn: follow_up_queue.postpone(conn, duty, until, note))
        return True

    async def do(self, account_id: str, subscription_id: str) -> None:
        """Bring a subscription to how it should stand, if there is a duty about it.

        Raises StripeUnavailable, StripeRefused, UsageNotReported, LostRace, CannotApply; the duty stays then.
        """
        written: set[str] = set()
        for _ in range(ROUNDS_MAX):
            try:
                await self._refresher.refresh(subscription_id, ORIGIN)
            except (client.NotAtStripe, apply_subscription.NotOurs):
                _log.warning("duty_without_subscription", subscription=subscription_id)
            now = self._clock.now()
            case = await self._database.read(lambda conn: _read(conn, account_id, subscription_id, now))  # noqa: B023 - awaited at once
            if case is None:
                if not written:
                    return
                # Others closed it while our write was under way: it may have undone what they found.
                await self._database.run(lambda conn: follow_up_queue.renew(conn, account_id, subscription_id, now))  # noqa: B023 - as above
                written.clear()
                continue
            row = case.row
            if row is not None and row.is_over and not await self._has_settled(case.duty, row):
                return
            if row is None or rules.is_so(case.wanted, is_over=row.is_over, will_end=row.will_end):
                await self._close(case)
                return
            if case.purpose in written:
                # It was done, and undone by somebody else's write.
                await self._database.run(lambda conn: follow_up_queue.renew(conn, account_id, subscription_id, now))  # noqa: B023 - as above
                continue
            await self._write(case, row)
            written.add(case.purpose)
        raise errors.LostRace("the subscription was changed by others at the same time; send the same call again")

    async def _close(self, case: _Case) -> None:
        """Forget a duty that is done, unless a write for an earlier one may yet undo it."""
        landed_at = case.duty.created_at + rules.LANDED_AFTER
        if case.contested and self._clock.now() < landed_at:
            await self._database.run(lambda conn: follow_up_queue.look_again(conn, case.duty, landed_at))
        else:
            await self._database.run(lambda conn: follow_up_queue.close(conn, case.duty))

    async def _has_settled(self, duty: follow_up_queue.FollowUp, row: subscription_records.SubscriptionRecord) -> bool:
        """Look whether all that was used is charged; False while it is too early to tell."""
        if row.superfluous or row.ended_at is None:
            return True  # the one that stays charges what was used
        at = row.ended_at + charge_unbilled.SETTLED_AFTER
        if self._clock.now() < at:
            await self._database.run(lambda conn: follow_up_queue.defer(conn, duty, at))
            return False
        await self._unbilled_usage.settle(duty.account_id, row.subscription_id)
        return True

    async def _write(self, case: _Case, row: subscription_records.SubscriptionRecord) -> None:
        if case.wanted in {rules.WantedState.ENDED, rules.WantedState.CREDITED}:
            await self._flush.flush(case.duty.account_id)
        operation, params = _call(row, case.wanted)
        intent = intents.Intent(case.duty.account_id, case.purpose, operation, params)
        try:
            if case.wanted is rules.WantedState.CREDITED:
                await self._stop_metering(row, case.plan, intent)
            await self._requests.perform(intent, _not_yet)
        except client.NotAtStripe:
            # It is over already; the next look tells.
            _log.info("duty_found_it_gone", subscription=row.subscription_id)

    async def _stop_metering(
        self, row: subscription_records.SubscriptionRecord, plan: str | None, intent: intents.Intent
    ) -> None:
        """Take the metered prices off what was bought twice, if the one that stays has them too.

        Meters add up by customer: the last invoice of this one would charge once more what the other charges.
        """
        fetched = await self._refresher.fetch(row.subscription_id)
        price_ids = [item.price_id for item in fetched.items]
        sold = await self._database.read(lambda conn: prices.sold_prices(conn, price_ids))
        metered = [
            item.item_id
            for item in fetched.items
            if item.price_id in sold and sold[item.price_id].meter and sold[item.price_id].plan == plan
        ]
        if not metered:
            return
        params = {
            "subscription": row.subscription_id,
            "items": [{"id": item_id, "deleted": True} for item_id in metered],
            # With prorations it would charge the usage of what is taken off.
            "proration_behavior": "none",
        }
        purpose = f"{intent.purpose}:meters"
        await self._requests.perform(
            intents.Intent(intent.account_id, purpose, "subscriptions.update", params), _not_yet
        )


async def _not_yet(_since: datetime) -> client.Data | None:
    """Find nothing: the subscription was fetched just now, and does not stand so yet."""
    return None


def _call(row: subscription_records.SubscriptionRecord, wanted: rules.WantedState) -> tuple[str, Mapping[str, Any]]:
    """Return the call that brings a subscription to how it should stand."""
    named = {"subscription": row.subscription_id}
    match wanted:
        case rules.WantedState.ENDED:
            return "subscriptions.cancel", {**named, "invoice_now": True, "prorate": False}
        case rules.WantedState.CREDITED:
            return "subscriptions.cancel", {**named, "invoice_now": True, "prorate": True}
        case rules.WantedState.ENDING:
            return "subscriptions.update", {**named, "cancel_at": int(row.billing_period_end.timestamp())}
        case rules.WantedState.KEPT:
            kept = {"cancel_at_period_end": False} if row.cancel_at_period_end else {"cancel_at": ""}
            return "subscriptions.update", {**named, **kept}


async def _read(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> _Case | None:
    duty = await follow_up_queue.find(conn, account_id, subscription_id)
    if duty is None:
        return None
    rows = await subscription_records.of_account(conn, account_id)
    under = await accounts_store.pay_as_you_go_under(conn, account_id)
    row = next((row for row in rows if row.subscription_id == subscription_id), None)
    state = rules.FollowUpState(
        superfluous=row is not None and row.superfluous,
        plan_in_force=any(one.gives_plan(now) for one in rows),
        switched_on=under == subscription_id,
    )
    plan = next((one.plan for one in rows if one.gives_plan(now) and not one.superfluous), None)
    wanted = rules.wanted(state)
    # One that is over stays over, whatever reaches Stripe.
    contested = (
        row is not None
        and not row.is_over
        and await intents.others_open(conn, account_id, subscription_id, _purpose(duty, wanted))
    )
    return _Case(duty, row, wanted, plan, contested)


def _purpose(duty: follow_up_queue.FollowUp, wanted: rules.WantedState) -> str:
    return f"duty:{duty.duty_id}:{wanted.value}"
