"""Compares all records, and writes the result to the audit log, from which the worker's metrics read it.

Open findings, which the service noted while it applied Stripe's objects, are listed with the differences.
"""

from dataclasses import dataclass

from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.platform.findings import store as findings_store
from billing_svc.reconciliation import customers, discrepancies, objects, usage
from billing_svc.stripe import client

ACTION = "reconciled"
# A comparison of all accounts has an audit entry without an account.
_NO_ACCOUNT = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A discrepancy as printed for an operator: its kind, its account, its object, and the difference."""

    kind: str
    account_id: str
    about: str
    detail: str


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
        self._clock = now
        self._customers = customers.CustomerReconciliation(database, catalogs, stripe, now)
        self._objects = objects.ObjectReconciliation(database, catalogs, stripe, now)
        self._usage = usage.UsageReconciliation(database, catalogs, stripe, now)

    async def run(self, origin: audit_store.Origin, account_id: str | None, *, fix: bool) -> list[Finding]:
        """Return the discrepancies; with `fix`, those left after the repair. Raises StripeUnavailable, Unavailable."""
        accounts = None if account_id is None else [account_id]
        # First, because a deleted customer has ended subscriptions.
        deleted = await self._customers.compare(account_id)
        if fix:
            await self._customers.fix(deleted, origin)
        differing = await self._objects.compare(account_id)
        found = len(deleted) + len(differing)
        if fix and differing:
            await self._objects.fix(differing, origin)
            differing = await self._objects.compare(account_id)
        # The comparison of usage reads subscriptions, so these are repaired first.
        usage_discrepancies = await self._usage.compare(accounts)
        found += len(usage_discrepancies)
        if fix and usage_discrepancies:
            usage_discrepancies = await self._usage.fix(usage_discrepancies, origin)
        findings = [
            Finding(difference.kind, difference.account_id, difference.object_id, difference.detail)
            for difference in ([] if fix else deleted) + differing
        ]
        findings += [_of_usage(discrepancy) for discrepancy in usage_discrepancies]
        stored = await self._database.read(lambda conn: findings_store.list_open(conn, account_id))
        findings += [_of_stored(finding) for finding in stored]
        found += len(stored)
        if account_id is None:
            changes = {"found": found, "left": len(findings), "fix": fix}
            now = self._clock.now()
            await self._database.run(lambda conn: audit_store.append(conn, origin, _NO_ACCOUNT, ACTION, changes, now))
        return findings


def _of_stored(finding: findings_store.OpenFinding) -> Finding:
    money = "" if finding.amount is None else f" ({finding.amount} minor units of {finding.currency})"
    detail = f"{finding.detail}{money}; since {finding.since:%Y-%m-%d}; {finding.settled_by}"
    return Finding(finding.kind, finding.account_id, finding.object_id, detail)


def _of_usage(discrepancy: discrepancies.UsageDiscrepancy) -> Finding:
    about = f"{discrepancy.meter} since {discrepancy.period_start:%Y-%m-%d}"
    return Finding(f"usage: {discrepancy.kind}", discrepancy.account_id, about, discrepancy.detail)
