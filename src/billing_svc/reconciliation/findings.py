"""Turns discrepancies into findings: rows that stay open until a comparison finds agreement."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform.findings import store
from billing_svc.platform.findings.store import Kind
from billing_svc.reconciliation import discrepancies, money_of

COMPARED = store.COMPARED_OBJECTS | store.COMPARED_USAGE

_FIX = "`billing-svc reconcile --fix`"
_SETTLED_BY = {
    Kind.CUSTOMER: f"{_FIX} unlinks it",
    Kind.SUBSCRIPTION: f"{_FIX} takes Stripe's state; what cannot be read has to be mended at Stripe",
    Kind.INVOICE: f"{_FIX} takes Stripe's state; what cannot be read has to be mended at Stripe",
    Kind.REPAYMENT: f"{_FIX} takes Stripe's state",
    Kind.STRANGER: "write the account's id into the customer's metadata at Stripe, or cancel it there and pay it back",
    Kind.USAGE_UNSEALED: f"the worker seals it; {_FIX} does so at once",
    Kind.USAGE_SLICES: "a defect of ours: compare usage_counters with usage_reports",
    Kind.USAGE_NOT_SENT: f"the worker sends it when its cause is mended; {_FIX} does so at once",
    Kind.USAGE_FAILED: f"mend the cause at Stripe, then {_FIX} sends or charges it",
    Kind.USAGE_METER: f"{_FIX} sends what the meter lacks; credit what it has too much",
    Kind.USAGE_ITEM: "mend the invoice item at Stripe, or make it again there",
    Kind.USAGE_UNINVOICED: f"{_FIX} puts it on an invoice of its own",
    Kind.USAGE_LINE: f"{_FIX} charges what no invoice charges; credit what is charged too much",
    Kind.USAGE_UNREADABLE: "mend the object at Stripe",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, as an operator sees it; `amount` is the money, in minor units of `currency`, if it is known.

    `is_repairable`: `--fix` sends or charges something because of it.
    """

    kind: str
    account_id: str
    about: str
    detail: str
    settled_by: str
    amount: int | None = None
    currency: str | None = None
    since: datetime | None = None
    is_repairable: bool = False


def of_objects(found: Sequence[discrepancies.ObjectDiscrepancy]) -> list[Finding]:
    """Return the findings of objects that differ."""
    return [
        Finding(
            one.kind,
            one.account_id,
            one.object_id,
            one.detail,
            _SETTLED_BY[Kind(one.kind)],
            one.amount,
            one.currency,
        )
        for one in found
    ]


async def of_usage(
    conn: AsyncConnection, catalogs: versions.CatalogCache, found: Sequence[discrepancies.UsageDiscrepancy]
) -> list[Finding]:
    """Return the findings of discrepancies of usage, with their money."""
    made = []
    for one in found:
        kind = Kind(f"usage: {one.kind}")
        money = await money_of.discrepancy(conn, catalogs, one)
        told = (kind, one.account_id, one.object_id, one.detail, _SETTLED_BY[kind])
        made.append(Finding(*told, *money, is_repairable=one.is_repairable))
    return made


def of_stored(stored: store.OpenFinding) -> Finding:
    """Return a finding that is stored."""
    return Finding(
        stored.kind,
        stored.account_id,
        stored.object_id,
        stored.detail,
        stored.settled_by,
        stored.amount,
        stored.currency,
        stored.since,
    )


async def keep(
    conn: AsyncConnection,
    found: Sequence[Finding],
    kinds: Collection[Kind],
    account_ids: Collection[str] | None,
    now: datetime,
) -> list[Finding]:
    """Store what a comparison of some accounts, or of all, found; close what it found before and not any more.

    `kinds` are those that it compares. Returns the findings with the instant since when each is open.
    """
    await store.settle_others(conn, kinds, account_ids, _keys(found), now)
    return await _stored(conn, found, now)


def _keys(found: Sequence[Finding]) -> set[tuple[str, str, str]]:
    return {(one.account_id, one.kind, one.about) for one in found}


async def _stored(conn: AsyncConnection, found: Sequence[Finding], now: datetime) -> list[Finding]:
    # In one order, so that two comparisons at once do not wait for each other's rows in a circle.
    for one in sorted(found, key=lambda one: (one.account_id, one.kind, one.about)):
        new = store.NewFinding(Kind(one.kind), one.about, one.detail, one.settled_by, one.amount, one.currency)
        await store.report(conn, one.account_id, new, now)
    since: dict[tuple[str, str, str], datetime] = {}
    for account_id in {one.account_id for one in found}:
        opened = await store.list_open(conn, account_id)
        since |= {(one.account_id, one.kind, one.object_id): one.since for one in opened}
    return [replace(one, since=since.get((one.account_id, one.kind, one.about))) for one in found]
