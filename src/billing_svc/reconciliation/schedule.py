"""The worker's scheduled comparison: what changed since the last pass, and everything once a week.

Each pass reads Stripe's lists of subscriptions and invoices, by the hundred, because a lost event leaves no trace here.
Usage is compared account by account. A pass that has used its reads goes on where it stopped when the next one is due.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.findings import store as findings_store
from billing_svc.reconciliation import customers, discrepancies, findings, objects, passes, reconcile, store, usage
from billing_svc.stripe import client

_log = structlog.get_logger(__name__)

# A step compares so many accounts' usage, and then sees whether the worker is to stop and whether reads are left.
ACCOUNTS_MAX = 20
# An invoice that a pass between the weekly ones has to see was created since the last pass; events may be so late.
INVOICES_MARGIN = timedelta(days=3)
# After a failure, such as Stripe being away.
AGAIN_AFTER = timedelta(minutes=5)
_ORIGIN = audit_store.Origin(audit_store.SERVICE)


class Schedule:
    """Does the steps of passes; any number of workers may have one. The client of Stripe must be its own."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
        reads_max: int,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._clock = now
        self._reads_max = reads_max
        self._customers = customers.CustomerReconciliation(database, catalogs, stripe, now)
        self._objects = objects.ObjectReconciliation(database, catalogs, stripe, now)
        self._usage = usage.UsageReconciliation(database, catalogs, stripe, now)

    async def go_on(self) -> int:
        """Do the next step of the pass that is due, if this worker gets it; returns 1 if there was one.

        Raises Unavailable. If Stripe cannot be reached, the step is repeated later.
        """
        now = self._clock.now()
        held = await self._database.run(lambda conn: passes.lease(conn, now))
        if held is None:
            return 0
        if held.ended_at is not None:
            begun = passes.begun(held, now)
            held = replace(held, **begun)
            if not await self._save(held, begun):
                return 0
        before = self._stripe.reads
        try:
            await self._step(held, before)
        except errors.BillingError as error:
            if isinstance(error, errors.Unavailable) and not isinstance(error, errors.StripeUnavailable):
                raise  # Postgres is away
            _log.warning("reconcile_postponed", error=str(error))
            reads = held.reads + self._stripe.reads - before
            await self._save(held, {"due_at": now + AGAIN_AFTER, "leased_until": now, "reads": reads})
        return 1

    async def _step(self, held: passes.Pass, reads_before: int) -> None:
        if not held.objects_compared:
            await self._compare_objects(held)
            progress: dict[str, object] = {"objects_compared": True}
            is_over = False
        else:
            accounts = await self._accounts(held)
            for account_id in accounts:
                await self._compare_usage(account_id)
            progress = {"after_account": accounts[-1]} if accounts else {}
            is_over = len(accounts) < ACCOUNTS_MAX
        now = self._clock.now()
        reads = held.reads + self._stripe.reads - reads_before
        progress |= {"reads": reads, "leased_until": now}
        if is_over:
            await self._end(held, progress, now)
            return
        if reads >= self._reads_max:
            _log.warning("reconcile_pauses", reads=reads, reads_max=self._reads_max)
            progress |= {"reads": 0, "due_at": now + passes.PASS_EVERY}
        await self._save(held, progress)

    async def _compare_objects(self, held: passes.Pass) -> None:
        """Compare customers (in a full pass), subscriptions and invoices of all accounts."""
        since = self._clock.now() - objects.INVOICES_SINCE
        if not held.is_full:
            since = max(since, held.changed_since - INVOICES_MARGIN)
        found = await self._objects.compare(None, since)
        kinds = findings_store.COMPARED_OBJECTS - {findings_store.Kind.CUSTOMER}
        if held.is_full:
            found = await self._customers.compare(None) + found
            kinds |= {findings_store.Kind.CUSTOMER}
        told = findings.of_objects(found)
        await self._database.run(lambda conn: findings.keep(conn, told, kinds, None, self._clock.now()))

    async def _accounts(self, held: passes.Pass) -> Sequence[str]:
        """Return the next accounts of the pass."""
        since = self._clock.now() - discrepancies.LOOKED_BACK
        if held.is_full:
            every = await self._usage.accounts(since)
        else:
            # Usage is compared with invoices when they are settled, hours after the period's end.
            changed_since = held.changed_since - discrepancies.SETTLED_AFTER
            every = await self._database.read(lambda conn: store.changed_accounts(conn, changed_since, held.began_at))
        return [account_id for account_id in every if account_id > held.after_account][:ACCOUNTS_MAX]

    async def _compare_usage(self, account_id: str) -> None:
        wrong = [one for one in await self._usage.compare([account_id]) if not one.is_under_way(self._clock.now())]

        async def keep(conn: AsyncConnection) -> None:
            told = await findings.of_usage(conn, self._catalogs, wrong)
            await findings.keep(conn, told, findings_store.COMPARED_USAGE, [account_id], self._clock.now())

        await self._database.run(keep)

    async def _end(self, held: passes.Pass, progress: dict[str, object], now: datetime) -> None:
        """End a pass, with the entry in the audit log from which the metrics read it."""
        progress |= {"ended_at": now, "due_at": now + passes.PASS_EVERY}
        if held.is_full:
            progress["full_began_at"] = held.began_at

        async def end(conn: AsyncConnection) -> None:
            if await passes.save(conn, held, progress):
                left = sum((await findings_store.count_open(conn)).values())
                changes = {"left": left, "full": held.is_full, "reads": progress["reads"]}
                await audit_store.append(conn, _ORIGIN, reconcile.NO_ACCOUNT, reconcile.ACTION, changes, now)

        await self._database.run(end)

    async def _save(self, held: passes.Pass, values: dict[str, object]) -> bool:
        return await self._database.run(lambda conn: passes.save(conn, held, values))
