"""Accrual: puts billable units into usage reports; a transaction for each account, under the counters' row locks."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.accounts import store as accounts_store
from billing_svc.platform.database import transactions
from billing_svc.pricing import rules as pricing_rules
from billing_svc.stripe import subscription_records
from billing_svc.usage_export import counters, rules, states, store

_log = structlog.get_logger(__name__)

# Accounts that one query returns.
PAGE_SIZE = 200


@dataclass(frozen=True, slots=True)
class _Billed:
    """The present charge of a counter, and the interval in which the timestamps of its usage reports must lie.

    `subscription` bills it; None if an invoice item does. `owed` are units that are not in a report yet and were
    recorded under earlier terms.
    """

    charge: rules.ChargeTerms
    start: datetime
    end: datetime
    subscription: subscription_records.SubscriptionRecord | None
    owed: Sequence[rules.AccruedUnits]

    def grows(self, report: rules.UsageReport, piece: rules.Piece, reported_for: datetime) -> bool:
        """Say whether a piece may be added to a report: if it was never sent, and no move lies between the two."""
        if not report.is_growing or report.charge != piece.charge:
            return False
        return self.subscription is None or not self.subscription.moved_between(report.reported_for, reported_for)


class Accrual:
    """Accrues counters. A new report is due after `send_interval`, but at the latest at the end of its period."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        now: clock.Clock,
        seal_interval: timedelta,
        send_interval: timedelta,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now
        self._seal_interval = seal_interval
        self._send_interval = send_interval
        self._sealed_all_at: datetime | None = None

    async def seal_due(self) -> int:
        """Accrue counters of past periods, and every `seal_interval` all counters; returns how many reports were added.

        Raises Unavailable if Postgres cannot be reached.
        """
        now = self._clock.now()
        everything = self._sealed_all_at is None or now >= self._sealed_all_at + self._seal_interval
        written, after = 0, ""
        while True:
            accounts = await self._database.read(
                lambda conn, after=after: (  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                    counters.unsealed_accounts(conn, after, PAGE_SIZE)
                    if everything
                    else counters.unsealed_accounts_of_past_periods(conn, after, PAGE_SIZE, now)
                )
            )
            for account_id in accounts:
                written += await self._seal_one(account_id)
            if len(accounts) < PAGE_SIZE:
                break
            after = accounts[-1]
        if everything:
            self._sealed_all_at = now
        return written

    async def seal(self, account_id: str) -> int:
        """Accrue all of an account's counters now; returns how many reports were written."""
        now = self._clock.now()
        return await self._database.run(lambda conn: seal(conn, self._catalogs, account_id, self._send_interval, now))

    async def _seal_one(self, account_id: str) -> int:
        try:
            return await self.seal(account_id)
        except errors.LostRace:
            return 0  # another process writes this account's reports; the next round accrues the rest
        except errors.BillingError:
            raise
        except Exception:  # noqa: BLE001 - logged in full; an error in one account must not stop the others
            _log.exception("seal_failed", account=account_id)
            return 0


async def seal(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    account_id: str,
    send_interval: timedelta,
    now: datetime,
    until: datetime | None = None,
) -> int:
    """Accrue the account's counters and return how many reports were written.

    Timestamps of the reports lie before `until`, if it is given. A counter that cannot be charged (no customer, or no
    price) is left as it is; the reconciliation reports it.
    """
    locked = await counters.lock_unsealed(conn, account_id)
    if not locked:
        return 0
    customer_id = await accounts_store.customer_of(conn, account_id)
    held = await subscription_records.of_account(conn, account_id)
    written = 0
    for counter in locked:
        last = await store.lock_last(conn, account_id, counter.meter, counter.period_start)
        billed = await _billed(conn, catalogs, counter, last, held, customer_id)
        if billed is None:
            _log.warning("usage_without_price", account=account_id, meter=counter.meter, plan=counter.plan)
            continue
        if until is not None and billed.start < until:
            billed = replace(billed, end=min(billed.end, until))
        written += await _write(conn, counter, last, billed, send_interval, now)
        await counters.mark_sealed(conn, counter)
    return written


async def _billed(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    counter: counters.UnreportedCounter,
    last: rules.UsageReport | None,
    held: list[subscription_records.SubscriptionRecord],
    customer_id: str | None,
) -> _Billed | None:
    """Return how a counter is charged: by its present terms, else as its last report, else by its last billed terms."""
    terms: rules.PlanVersion | None = (counter.plan, counter.catalog_version)
    charge = await _charge(conn, catalogs, counter, terms, held, customer_id)
    if charge is None and last is not None:
        charge = last.charge
    if charge is None:
        terms = await counters.last_billed_terms(conn, counter)
        charge = await _charge(conn, catalogs, counter, terms, held, customer_id)
    if charge is None:
        return None
    subscription = next((record for record in held if record.subscription_id == charge.subscription_id), None)
    start, end = _interval(counter, charge, subscription)
    owed: list[rules.AccruedUnits] = []
    # A slow call may have written older terms to the counter after other calls wrote the present terms.
    left = subscription is not None and (subscription.plan, subscription.catalog_version) != charge.terms
    if last is None or last.charge.terms != charge.terms or left or await counters.has_terms_of_holds(conn, counter):
        for earlier, units in (await _owed(conn, counter, charge)).items():
            charged = await _charge(conn, catalogs, counter, earlier, held, customer_id)
            if charged is not None:
                owed.append(rules.AccruedUnits(charged, units))
    return _Billed(charge, start, end, subscription, owed)


def _interval(
    counter: counters.UnreportedCounter,
    charge: rules.ChargeTerms,
    subscription: subscription_records.SubscriptionRecord | None,
) -> tuple[datetime, datetime]:
    """Return the interval in which the timestamps of a counter's reports must lie, so that Stripe bills them."""
    start, end = counter.period_start, counter.period_end
    if subscription is None:
        return start, end
    start = max(start, subscription.effective_from)
    if subscription.items_since is not None and subscription.plan == charge.plan:
        start = max(start, subscription.items_since)  # its item bills no earlier usage
    if subscription.effective_until is not None and subscription.effective_until > start:
        end = min(end, subscription.effective_until)
    moved_at = subscription.stretch_end(counter.period_start)
    if moved_at is not None and subscription.is_plan:
        end = min(end, moved_at)  # the move ended the quota period too: plans that charge count billing months
    return start, end


async def _charge(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    counter: counters.UnreportedCounter,
    terms: rules.PlanVersion | None,
    held: list[subscription_records.SubscriptionRecord],
    customer_id: str | None,
) -> rules.ChargeTerms | None:
    if terms is None:
        return None
    plan, version = terms
    price = pricing_rules.metered_price(await catalogs.get(conn, version), plan, counter.meter)
    if price is None:
        return None
    bills = _bills(counter, plan, held)
    customer_id = customer_id if bills is None else bills.customer_id
    if customer_id is None:
        return None
    return rules.ChargeTerms(
        plan=plan,
        catalog_version=version,
        event_name=price.lookup_key,
        customer_id=customer_id,
        subscription_id=None if bills is None else bills.subscription_id,
    )


def _bills(
    counter: counters.UnreportedCounter, plan: str, held: list[subscription_records.SubscriptionRecord]
) -> subscription_records.SubscriptionRecord | None:
    """Return the subscription that bills a counter: its own, or the metered-only subscription of pay-as-you-go."""
    if counter.subscription_id is not None:
        return next((record for record in held if record.subscription_id == counter.subscription_id), None)
    return next(
        (
            record
            for record in held
            if not record.is_plan
            and record.plan == plan
            and record.effective_from < counter.period_end
            and (record.effective_until is None or record.effective_until > counter.period_start)
        ),
        None,
    )


async def _write(
    conn: AsyncConnection,
    counter: counters.UnreportedCounter,
    last: rules.UsageReport | None,
    billed: _Billed,
    send_interval: timedelta,
    now: datetime,
) -> int:
    """Put `billable` minus `sealed` into reports: the newest grows if it was never sent, else new reports follow."""
    pieces = rules.split_into_reports(
        counter.sealed,
        counter.billable,
        billed.charge,
        await store.accrued(conn, counter.account_id, counter.meter, counter.period_start)
        if counter.billable < counter.sealed
        else (),
        billed.owed,
    )
    reported_for = rules.stamp(now, billed.start, billed.end)
    next_attempt_at = now if now >= billed.end else min(now + send_interval, billed.end)
    for piece in pieces:
        growing = last if last is not None and billed.grows(last, piece, reported_for) else None
        at = reported_for
        if piece.units + (0 if growing is None else growing.units) < 0:
            # Take the units back in the billing period that charged them: Stripe bills nothing for a negative sum of a
            # period.
            at = (
                await store.last_added_at(conn, counter.account_id, counter.meter, counter.period_start, piece.charge)
                or at
            )
        if growing is not None:
            change = rules.grown(growing, piece, at, billed.end, next_attempt_at, now)
            last = await store.write(conn, growing, change)
            if last is None:  # the row is locked, so this cannot happen; if it did, the counter is not accrued
                raise errors.LostRace("the newest usage report of the counter has changed")
            continue
        report_id = uuid.uuid4().hex
        last = rules.UsageReport(
            account_id=counter.account_id,
            report_id=report_id,
            meter=counter.meter,
            period_start=counter.period_start,
            slice=1 if last is None else last.slice + 1,
            from_units=piece.from_units,
            to_units=piece.to_units,
            plan=piece.charge.plan,
            catalog_version=piece.charge.catalog_version,
            subscription_id=piece.charge.subscription_id,
            customer_id=piece.charge.customer_id,
            stripe_event_name=piece.charge.event_name,
            reported_for=at,
            period_end=billed.end,
            identifier=report_id,
            state=states.ReportState.SEALED,
            attempts=0,
            next_attempt_at=next_attempt_at,
            first_attempt_at=None,
            last_attempt_at=None,
            refused_at=None,
            error=None,
            amount=None,
            invoice_item_id=None,
            sealed_at=now,
        )
        await store.insert(conn, last)
    return len(pieces)


async def _owed(
    conn: AsyncConnection, counter: counters.UnreportedCounter, present: rules.ChargeTerms
) -> dict[rules.PlanVersion, int]:
    """Return units recorded under other terms than the present terms and not in a report yet; earliest terms first.

    Accrual runs before a change of plan. Such units were recorded between the accrual and the change, or the change was
    not made through this service.
    """
    owed = rules.billed_by_terms(await counters.billed_units(conn, counter))
    owed.pop(present.terms, None)
    for accrued_units in await store.accrued(conn, counter.account_id, counter.meter, counter.period_start):
        if accrued_units.charge.terms in owed:
            owed[accrued_units.charge.terms] -= accrued_units.units
    return owed
