"""Runs follow-ups: brings a subscription at Stripe to its wanted state.

The wanted state is read before each write and again after it, so that with concurrent switches the last switch wins: if
the wanted state has changed meanwhile, the same worker writes again. If it cannot check after its write, because Stripe
did not answer or the process died, the write stays open in `stripe_requests`; then the later follow-up is not closed
before that write must have arrived.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.stripe import client, intents, prices, subscription_records
from billing_svc.subscriptions.follow_ups import rules
from billing_svc.subscriptions.records import apply_subscription, follow_up_queue, refresh_subscription
from billing_svc.usage_export import charge_unbilled, export_now, shared_meters

_log = structlog.get_logger(__name__)

# Bound on the follow-ups of one round of the worker.
FOLLOW_UPS_MAX = 20
# The wanted state changes during a round only if someone switches pay-as-you-go repeatedly.
ROUNDS_MAX = 4

ORIGIN = audit_store.Origin("service")


@dataclass(frozen=True, slots=True)
class _Case:
    """A follow-up, its subscription as just fetched, and the wanted state; `row` is None if nothing is stored.

    `contested`: another write about the subscription has an unknown outcome.
    """

    follow_up: follow_up_queue.FollowUp
    row: subscription_records.SubscriptionRecord | None
    wanted: rules.WantedState
    contested: bool

    @property
    def purpose(self) -> str:
        """The purpose of the intent of its write."""
        return _purpose(self.follow_up, self.wanted)


class FollowUps:
    """Runs due follow-ups."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        writes: intents.Requests,
        refresher: refresh_subscription.Refresher,
        flush: export_now.ExportNow,
        unbilled_usage: charge_unbilled.UnbilledUsage,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._requests = writes
        self._refresher = refresher
        self._flush = flush
        self._unbilled_usage = unbilled_usage
        self._clock = now

    async def do_due(self) -> int:
        """Run the due follow-ups; returns how many were taken. A follow-up that fails is tried again later.

        Subscriptions that have changed or ended are settled too.
        """
        now = self._clock.now()
        taken = await self._unbilled_usage.settle_due()
        for account_id, subscription_id in await self._database.read(
            lambda conn: follow_up_queue.due(conn, FOLLOW_UPS_MAX, now)
        ):
            taken += await self._try(account_id, subscription_id)
        return taken

    async def _try(self, account_id: str, subscription_id: str) -> bool:
        now = self._clock.now()
        if not await self._database.run(lambda conn: follow_up_queue.take(conn, account_id, subscription_id, now)):
            return False
        try:
            await self.do(account_id, subscription_id)
        except errors.StripeObjectUnreadable as error:
            note = error.message
            _log.warning("duty_postponed", subscription=subscription_id, error=note)
        except errors.BillingError as error:
            note = error.message
            _log.info("duty_postponed", subscription=subscription_id, error=note)
        else:
            return True
        follow_up = await self._database.read(lambda conn: follow_up_queue.find(conn, account_id, subscription_id))
        if follow_up is not None:
            until = rules.retry_at(follow_up.attempts, self._clock.now())
            await self._database.run(lambda conn: follow_up_queue.postpone(conn, follow_up, until, note))
        return True

    async def do(self, account_id: str, subscription_id: str) -> None:
        """Bring a subscription to its wanted state, if it has a follow-up.

        Raises StripeUnavailable, StripeRefused, UsageNotReported, LostRace, CannotApply; the follow-up stays then.
        """
        written: set[str] = set()
        for _ in range(ROUNDS_MAX):
            try:
                await self._refresher.refresh(subscription_id, ORIGIN)
            except (client.NotAtStripe, apply_subscription.NotOurs):
                _log.warning("duty_without_subscription", subscription=subscription_id)
            except apply_subscription.CannotApply as error:
                if error.standing is None:
                    raise
                # The row has now what a follow-up decides by: whether the subscription has ended or will end.
                _log.warning("duty_with_unreadable_subscription", subscription=subscription_id, error=error.message)
            now = self._clock.now()
            case = await self._database.read(lambda conn: _read(conn, account_id, subscription_id, now))  # noqa: B023 - awaited at once
            if case is None:
                if not written:
                    return
                # Another process closed the follow-up during our write, which may have changed the state that it had
                # checked.
                await self._database.run(lambda conn: follow_up_queue.renew(conn, account_id, subscription_id, now))  # noqa: B023 - as above
                written.clear()
                continue
            row = case.row
            if row is None or rules.is_so(case.wanted, is_over=row.is_over, will_end=row.will_end):
                await self._close(case)
                return
            if case.purpose in written:
                # Our write was made, and someone else's later write changed the state again.
                await self._database.run(lambda conn: follow_up_queue.renew(conn, account_id, subscription_id, now))  # noqa: B023 - as above
                continue
            await self._write(case, row)
            written.add(case.purpose)
        raise errors.LostRace("someone else changed the subscription at the same time; send the same call again")

    async def _close(self, case: _Case) -> None:
        """Delete a follow-up that is done, unless an earlier follow-up's write may still arrive and undo it."""
        landed_at = case.follow_up.created_at + rules.LANDED_AFTER
        if case.contested and self._clock.now() < landed_at:
            await self._database.run(lambda conn: follow_up_queue.look_again(conn, case.follow_up, landed_at))
        else:
            await self._database.run(lambda conn: follow_up_queue.close(conn, case.follow_up))

    async def _write(self, case: _Case, row: subscription_records.SubscriptionRecord) -> None:
        if case.wanted in {rules.WantedState.ENDED, rules.WantedState.CREDITED}:
            await self._flush.flush(case.follow_up.account_id)
        operation, params = _call(row, case.wanted)
        intent = intents.Intent(case.follow_up.account_id, case.purpose, operation, params)
        try:
            if case.wanted is rules.WantedState.CREDITED:
                await self._stop_metering(row, intent)
            await self._requests.perform(intent, _not_yet)
        except client.NotAtStripe:
            # It has ended already; the next fetch shows it.
            _log.info("duty_found_it_gone", subscription=row.subscription_id)

    async def _stop_metering(self, row: subscription_records.SubscriptionRecord, intent: intents.Intent) -> None:
        """Remove the metered prices from a superfluous subscription whose meters a remaining subscription bills too.

        Meters add up by customer: the last invoice of this subscription would charge the same usage a second time. The
        usage of its other meters is charged by this invoice alone.
        """
        fetched = await self._refresher.fetch(row.subscription_id)
        price_ids = [item.price_id for item in fetched.items]

        async def read(conn: AsyncConnection) -> tuple[dict[str, prices.SoldPrice], set[str]]:
            held = await subscription_records.of_account(conn, row.account_id)
            remaining = [one for one in held if one.customer_id == row.customer_id and not one.superfluous]
            return await prices.sold_prices(conn, price_ids), {
                name
                for one in remaining
                if one.is_giving
                for name in await shared_meters.events_of(conn, self._catalogs, one)
            }

        sold, billed = await self._database.read(read)
        metered = [
            item.item_id
            for item in fetched.items
            if item.price_id in sold and sold[item.price_id].stripe_event_name in billed
        ]
        if not metered:
            return
        params = {
            "subscription": row.subscription_id,
            "items": [{"id": item_id, "deleted": True} for item_id in metered],
            # With prorations Stripe would charge the usage of the removed items.
            "proration_behavior": "none",
        }
        purpose = f"{intent.purpose}:meters"
        await self._requests.perform(
            intents.Intent(intent.account_id, purpose, "subscriptions.update", params), _not_yet
        )


async def _not_yet(_since: datetime) -> client.Data | None:
    """Return None: the subscription was just fetched, so the write is known not to have happened."""
    return None


def _call(row: subscription_records.SubscriptionRecord, wanted: rules.WantedState) -> tuple[str, Mapping[str, Any]]:
    """Return the call that brings a subscription to its wanted state."""
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
        case rules.WantedState.LEFT:
            raise ValueError("a subscription that is left as it is needs no call")


async def _read(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> _Case | None:
    follow_up = await follow_up_queue.find(conn, account_id, subscription_id)
    if follow_up is None:
        return None
    rows = await subscription_records.of_account(conn, account_id)
    under = await accounts_store.pay_as_you_go_under(conn, account_id)
    row = next((row for row in rows if row.subscription_id == subscription_id), None)
    state = rules.FollowUpState(
        superfluous=row is not None and row.superfluous,
        is_plan=row is not None and row.is_plan,
        plan_in_force=any(record.gives_plan(now) for record in rows),
        switched_on=under == subscription_id,
    )
    wanted = rules.wanted(state)
    # A subscription that is over cannot be changed by a late write.
    contested = (
        row is not None
        and not row.is_over
        and await intents.others_open(conn, account_id, subscription_id, _purpose(follow_up, wanted))
    )
    return _Case(follow_up, row, wanted, contested)


def _purpose(follow_up: follow_up_queue.FollowUp, wanted: rules.WantedState) -> str:
    return f"duty:{follow_up.duty_id}:{wanted.value}"
