"""Compares all records, repairs if told to, and keeps what differs as findings until a comparison finds agreement.

Open findings of other kinds, which the service noted while it applied Stripe's objects, are listed with the
differences. A comparison of all accounts has an entry in the audit log, from which the worker's metrics read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.findings import store as findings_store
from billing_svc.reconciliation import customers, discrepancies, findings, objects, repair, store, usage
from billing_svc.stripe import client

ACTION = "reconciled"
# A comparison of all accounts has an audit entry without an account.
NO_ACCOUNT = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is compared: an account or all (None), and from when on; None: as far as it is usual."""

    account_id: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a comparison found (after a repair: what is left), and what was not compared."""

    findings: Sequence[findings.Finding]
    left_out: store.LeftOut
    usage_since: datetime
    invoices_since: datetime
    accounts: int


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to act on what is found.

    `agree` is asked before a repair charges something, and gets what it will charge; `did` is told each thing that a
    repair did, also if the next fails. Without `keep`, findings are neither opened nor closed. `progress` is told how
    many accounts' usage is compared, of how many.
    """

    fix: bool = False
    keep: bool = True
    agree: Callable[[Sequence[findings.Finding]], bool] = field(default=lambda _charges: True)
    did: Callable[[repair.Done], None] = field(default=lambda _done: None)
    progress: Callable[[int, int], None] = field(default=lambda _done, _total: None)


class Comparison:
    """Compares customers, subscriptions, invoices and usage with Stripe."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._clock = now
        self._customers = customers.CustomerReconciliation(database, catalogs, stripe, now)
        self._objects = objects.ObjectReconciliation(database, catalogs, stripe, now)
        self._usage = usage.UsageReconciliation(database, catalogs, stripe, now)

    async def run(self, origin: audit_store.Origin, scope: Scope, options: RunOptions) -> Outcome:
        """Compare, and repair if told to. Raises StripeUnavailable, StripeAccountMismatch and Unavailable."""
        now = self._clock.now()
        usage_since = scope.since or now - discrepancies.LOOKED_BACK
        invoices_since = scope.since or now - objects.INVOICES_SINCE
        # These first: a deleted customer has ended subscriptions, and the comparison of usage reads subscriptions.
        differing, found = await self._compare_objects(origin, scope.account_id, invoices_since, options)
        accounts = [scope.account_id] if scope.account_id else await self._usage.accounts(usage_since)
        counted = _Counted(len(accounts), options.progress)
        wrong = await self._usage.compare(accounts, usage_since, counted.one_more)
        found += len(wrong)
        if options.fix and wrong and options.agree(await self._charges(wrong)):
            wrong = await self._usage.fix(wrong, origin, usage_since, options.did)
        differences = findings.of_objects(differing) + await self._of_usage(wrong)
        if options.keep:
            kinds = findings.COMPARED
            only = None if scope.account_id is None else [scope.account_id]
            differences = await self._database.run(
                lambda conn: findings.keep(conn, differences, kinds, only, self._clock.now())
            )
        listed = await self._database.read(lambda conn: findings_store.list_open(conn, scope.account_id))
        noted = [findings.of_stored(one) for one in listed if one.kind not in findings.COMPARED]
        found += len(noted)
        if scope.account_id is None and options.keep:
            changes = {"found": found, "left": len(differences) + len(noted), "fix": options.fix}
            await self._database.run(
                lambda conn: audit_store.append(conn, origin, NO_ACCOUNT, ACTION, changes, self._clock.now())
            )
        left_out = await self._database.read(
            lambda conn: store.left_out(conn, scope.account_id, usage_since, invoices_since)
        )
        return Outcome([*differences, *noted], left_out, usage_since, invoices_since, len(accounts))

    async def _compare_objects(
        self, origin: audit_store.Origin, account_id: str | None, since: datetime, options: RunOptions
    ) -> tuple[list[discrepancies.ObjectDiscrepancy], int]:
        """Return the objects that (still) differ, and how many differed before the repair."""
        deleted = await self._customers.compare(account_id)
        if options.fix and deleted:
            await self._customers.fix(deleted, origin)
            before, deleted = deleted, await self._customers.compare(account_id)
            _tell(before, deleted, "unlinked", options.did)
        differing = await self._objects.compare(account_id, since)
        found = len(deleted) + len(differing)
        if options.fix and differing:
            await self._objects.fix(differing, origin)
            before, differing = differing, await self._objects.compare(account_id, since)
            _tell(before, differing, "taken from Stripe", options.did)
        return deleted + differing, found

    async def _charges(self, wrong: Sequence[discrepancies.UsageDiscrepancy]) -> list[findings.Finding]:
        return [one for one in await self._of_usage(wrong) if one.is_repairable]

    async def _of_usage(self, wrong: Sequence[discrepancies.UsageDiscrepancy]) -> list[findings.Finding]:
        return await self._database.read(lambda conn: findings.of_usage(conn, self._catalogs, wrong))


class _Counted:
    """Counts the accounts that are compared."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self._done, self._total, self._progress = 0, total, progress
        progress(0, total)

    def one_more(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


def _tell(
    before: Sequence[discrepancies.ObjectDiscrepancy],
    after: Sequence[discrepancies.ObjectDiscrepancy],
    what: str,
    did: Callable[[repair.Done], None],
) -> None:
    """Tell which objects do not differ any more."""
    left = {(one.kind, one.object_id) for one in after}
    for one in before:
        if (one.kind, one.object_id) not in left:
            did(repair.Done(one.kind, one.account_id, one.object_id, f"{what}: {one.detail}"))
