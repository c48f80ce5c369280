"""One comparison of everything, and its trace in the audit log, which the worker's metrics read."""

from dataclasses import dataclass

from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import transactions
from billing_svc.reconciliation import discrepancies, objects, usage
from billing_svc.stripe import client

ACTION = "reconciled"
# What concerns all accounts belongs to none.
_NO_ACCOUNT = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that differs, for people: of what kind, whose, which object, and how."""

    kind: str
    account_id: str
    about: str
    detail: str


class Comparison:
    """Compares subscriptions, invoices and usage with Stripe."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._clock = now
        self._objects = objects.ObjectReconciliation(database, catalogs, stripe, now)
        self._usage = usage.UsageReconciliation(database, catalogs, stripe, now)

    async def run(self, origin: audit_store.Origin, account_id: str | None, *, fix: bool) -> list[Finding]:
        """Return what differs; with `fix`, what still differs after mending. Raises StripeUnavailable, Unavailable."""
        accounts = None if account_id is None else [account_id]
        differing = await self._objects.compare(account_id)
        found = len(differing)
        if fix and differing:
            await self._objects.fix(differing, origin)
            differing = await self._objects.compare(account_id)
        # Usage is charged by subscriptions, so those are right first.
        usage_drifts = await self._usage.compare(accounts)
        found += len(usage_drifts)
        if fix and usage_drifts:
            usage_drifts = await self._usage.fix(usage_drifts, origin)
        findings = [Finding(one.kind, one.account_id, one.object_id, one.detail) for one in differing]
        findings += [_of_usage(one) for one in usage_drifts]
        if account_id is None:
            changes = {"found": found, "left": len(findings), "fix": fix}
            now = self._clock.now()
            await self._database.run(lambda conn: audit_store.append(conn, origin, _NO_ACCOUNT, ACTION, changes, now))
        return findings


def _of_usage(one: discrepancies.UsageDiscrepancy) -> Finding:
    about = f"{one.meter} since {one.period_start:%Y-%m-%d}"
    return Finding(f"usage: {one.kind}", one.account_id, about, one.detail)
