"""Doing duties: bringing a subscription at Stripe to how it should stand.

What is wanted is read afresh before each write and after it, so that whatever races, the last switch wins: whoever
finds that his write came late writes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import clock, errors
from billing_svc.accounts import store as accounts_store
from billing_svc.audit import store as audit_store
from billing_svc.database import transactions
from billing_svc.duties import rules, store
from billing_svc.stripe import client, requests
from billing_svc.subscriptions import applying, refreshing
from billing_svc.subscriptions import store as subscriptions_store
from billing_svc.usage_reports import flushing

_log = structlog.get_logger(__name__)

# Taken in one round of the worker.
DUTIES_MAX = 20
# What is wanted changes while it is done only when somebody switches to and fro.
ROUNDS_MAX = 4

ORIGIN = audit_store.Origin("service")


@dataclass(frozen=True, slots=True)
class _Case:
    """A duty, its subscription as it was just fetched, and how that should stand; without a row there is none."""

    duty: store.Duty
    row: subscriptions_store.Row | None
    wanted: rules.Wanted


class Duties:
    """Does what is due."""

    def __init__(
        self,
        database: transactions.Transactions,
        writes: requests.Requests,
        refresher: refreshing.Refresher,
        flush: flushing.Flush,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._requests = writes
        self._refresher = refresher
        self._flush = flush
        self._clock = now

    async def do_due(self) -> int:
        """Do the duties that are due; returns how many were taken. One that fails is tried again later."""
        now = self._clock.now()
        taken = 0
        for account_id, subscription_id in await self._database.read(lambda conn: store.due(conn, DUTIES_MAX, now)):
            taken += await self._try(account_id, subscription_id)
        return taken

    async def _try(self, account_id: str, subscription_id: str) -> bool:
        now = self._clock.now()
        if not await self._database.run(lambda conn: store.take(conn, account_id, subscription_id, now)):
            return False
        try:
            await self.do(account_id, subscription_id)
        except errors.BillingError as error:
            note = error.message
            _log.info("duty_postponed", subscription=subscription_id, error=note)
        except applying.CannotApply as error:
            note = str(error)
            _log.warning("duty_postponed", subscription=subscription_id, error=note)
        else:
            return True
        duty = await self._database.read(lambda conn: store.find(conn, account_id, subscription_id))
        if duty is not None:
            until = rules.retry_at(duty.attempts, self._clock.now())
            await self._database.run(lambda conn: store.postpone(conn, duty, until, note))
        return True

    async def do(self, account_id: str, subscription_id: str) -> None:
        """Bring a subscription to how it should stand, if there is a duty about it.

        Raises StripeUnavailable, StripeRefused, UsageNotReported, LostRace, CannotApply; the duty stays then.
        """
        written: set[str] = set()
        for _ in range(ROUNDS_MAX):
            try:
                await self._refresher.refresh(subscription_id, ORIGIN)
            except (client.NotAtStripe, applying.NotOurs):
                _log.warning("duty_without_subscription", subscription=subscription_id)
            now = self._clock.now()
            case = await self._database.read(lambda conn: _read(conn, account_id, subscription_id, now))  # noqa: B023 - awaited at once
            if case is None:
                return
            row = case.row
            if row is None or rules.is_so(case.wanted, is_over=row.is_over, will_end=row.will_end):
                await self._database.run(lambda conn: store.close(conn, case.duty))  # noqa: B023 - as above
                return
            purpose = f"duty:{case.duty.duty_id}:{case.wanted.value}"
            if purpose in written:
                # It was done, and undone by somebody else's write.
                await self._database.run(lambda conn: store.renew(conn, account_id, subscription_id, now))  # noqa: B023 - as above
                continue
            await self._write(case, row, purpose)
            written.add(purpose)
        raise errors.LostRace("the subscription was changed by others at the same time; send the same call again")

    async def _write(self, case: _Case, row: subscriptions_store.Row, purpose: str) -> None:
        if case.wanted in {rules.Wanted.ENDED, rules.Wanted.CREDITED}:
            await self._flush.flush(case.duty.account_id)
        operation, params = _call(row, case.wanted)

        async def look_up(_since: datetime) -> client.Data | None:
            return None  # the subscription was fetched just now, and does not stand so yet

        intent = requests.Intent(case.duty.account_id, purpose, operation, params)
        try:
            await self._requests.perform(intent, look_up)
        except client.NotAtStripe:
            # It is over already; the next look tells.
            _log.info("duty_found_it_gone", subscription=row.subscription_id)


def _call(row: subscriptions_store.Row, wanted: rules.Wanted) -> tuple[str, Mapping[str, Any]]:
    """Return the call that brings a subscription to how it should stand."""
    named = {"subscription": row.subscription_id}
    match wanted:
        case rules.Wanted.ENDED:
            return "subscriptions.cancel", {**named, "invoice_now": True, "prorate": False}
        case rules.Wanted.CREDITED:
            return "subscriptions.cancel", {**named, "invoice_now": True, "prorate": True}
        case rules.Wanted.ENDING:
            return "subscriptions.update", {**named, "cancel_at": int(row.billing_period_end.timestamp())}
        case rules.Wanted.KEPT:
            kept = {"cancel_at_period_end": False} if row.cancel_at_period_end else {"cancel_at": ""}
            return "subscriptions.update", {**named, **kept}


async def _read(conn: AsyncConnection, account_id: str, subscription_id: str, now: datetime) -> _Case | None:
    duty = await store.find(conn, account_id, subscription_id)
    if duty is None:
        return None
    rows = await subscriptions_store.subscriptions(conn, account_id)
    under = await accounts_store.pay_as_you_go_under(conn, account_id)
    row = next((row for row in rows if row.subscription_id == subscription_id), None)
    standing = rules.Standing(
        superfluous=row is not None and row.superfluous,
        plan_in_force=any(one.gives_plan(now) for one in rows),
        switched_on=under == subscription_id,
    )
    return _Case(duty, row, rules.wanted(standing))
