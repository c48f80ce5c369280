"""Compares subscriptions and invoices with Stripe.

A fetched object is applied in a transaction that is rolled back; what the row would have changed is the discrepancy.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.customers import store as customers_store
from billing_svc.platform import clock, errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables, transactions
from billing_svc.platform.findings import store as findings_store
from billing_svc.reconciliation import discrepancies, store, strangers
from billing_svc.stripe import client, leases, parse
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.invoices import apply_invoice, fetch_invoices, fetch_repayments
from billing_svc.subscriptions.invoices import store as invoices_store
from billing_svc.subscriptions.records import apply_subscription, refresh_subscription

# Older invoices are compared only while they are draft or open here, or if an earlier instant is asked for.
INVOICES_SINCE = timedelta(days=65)
_COMPARING = audit_store.Origin("operator:reconcile")
# The kind of a difference in what was paid back of an invoice.
_REPAYMENT = "repayment"
# The time of our last write is not a difference.
_NOT_COMPARED = frozenset({"updated_at"})


class _Undone(Exception):
    """Carries the rows out of a transaction that must be rolled back."""

    def __init__(self, account_id: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.account_id = account_id
        self.before = before
        self.after = after


# Applies a fetched object in a transaction, and returns its account.
_Apply = Callable[[AsyncConnection], Awaitable[str]]


class ObjectReconciliation:
    """Compares subscriptions and invoices with Stripe, and updates rows that differ."""

    def __init__(
        self,
        database: transactions.Transactions,
        catalogs: versions.CatalogCache,
        stripe: client.Stripe,
        now: clock.Clock,
    ) -> None:
        self._database = database
        self._catalogs = catalogs
        self._stripe = stripe
        self._clock = now
        self._refresher = refresh_subscription.Refresher(database, catalogs, stripe, now)

    async def compare(self, account_id: str | None, since: datetime) -> list[discrepancies.ObjectDiscrepancy]:
        """Return the discrepancies of an account, or of all. Raises StripeUnavailable and Unavailable.

        Compared are all subscriptions, the invoices created from `since` on, and older ones that are not final here.
        A comparison of all accounts also finds strangers who pay for a plan of ours.
        """
        customers = await self._database.read(lambda conn: _customers(conn, account_id))
        subscriptions = await self._fetched(customers, account_id, self._stripe.every_subscription)
        ours = set(customers)
        # An object without a readable customer may be ours too.
        differences = await self._compare_subscriptions(
            [data for data in subscriptions if _customer_of(data) in {None, *ours}], account_id
        )
        if account_id is None:
            foreign = [data for data in subscriptions if _customer_of(data) not in {None, *ours}]
            differences += await self._database.read(lambda conn: strangers.find(conn, foreign))
        invoices = await self._fetched(
            customers, account_id, lambda customer_id: self._stripe.every_invoice(customer_id, since)
        )
        invoices = [data for data in invoices if _customer_of(data) in {None, *ours}]
        older, missing = await self._older_invoices(account_id, since, {parse.nested(data, "id") for data in invoices})
        differences += missing + await self._compare_invoices(invoices + older, account_id, since)
        return differences + await self._compare_repayments(customers, account_id, since)

    async def _older_invoices(
        self, account_id: str | None, before: datetime, listed: Collection[object]
    ) -> tuple[list[client.Data], list[discrepancies.ObjectDiscrepancy]]:
        """Return Stripe's invoices that are older than the list and may be wrong, and those that Stripe lacks."""
        fetched, missing = list[client.Data](), list[discrepancies.ObjectDiscrepancy]()
        older = await self._database.read(lambda conn: store.older_invoices(conn, account_id, before))
        for invoice_id, owner in older.items():
            if invoice_id in listed:
                continue
            try:
                fetched.append(await self._stripe.invoice(invoice_id))
            except client.NotAtStripe:
                if await self._database.read(lambda conn, at=invoice_id: _row(conn, tables.invoices, at)) is not None:  # type: ignore[misc]
                    detail = "Stripe does not have it"
                    missing.append(discrepancies.ObjectDiscrepancy("invoice", owner, invoice_id, detail))
        return fetched, missing

    async def fix(self, differences: Sequence[discrepancies.ObjectDiscrepancy], origin: audit_store.Origin) -> None:
        """Update the rows from Stripe; the next comparison reports rows that could not be updated."""
        for difference in differences:
            if difference.kind == strangers.KIND:
                continue  # whose plan it is, is a person's judgement
            try:
                if difference.kind == "subscription":
                    await self._refresher.refresh(difference.object_id, origin)
                elif difference.kind == _REPAYMENT:
                    await self._refresh_repayment(difference.object_id, origin)
                else:
                    await self._refresh_invoice(difference, origin)
            except (
                client.NotAtStripe,
                apply_subscription.NotOurs,
                apply_subscription.CannotApply,
                errors.LostRace,
                errors.StripeObjectUnreadable,
            ):
                continue

    async def _fetched(
        self,
        customers: Sequence[str],
        account_id: str | None,
        fetch: Callable[[str | None], Awaitable[list[client.Data]]],
    ) -> list[client.Data]:
        """Return Stripe's objects of some customers; for all accounts, those of strangers too, by the hundred."""
        if account_id is None:
            return await fetch(None)
        return [data for customer_id in customers for data in await fetch(customer_id)]

    async def _compare_subscriptions(
        self, fetched: Sequence[client.Data], account_id: str | None
    ) -> list[discrepancies.ObjectDiscrepancy]:
        differences = []
        for data in fetched:
            try:
                subscription = stripe_subscriptions.from_stripe(data)
            except errors.StripeObjectUnreadable as error:
                differences += await self._unreadable("subscription", data, error)
                continue

            async def apply(
                conn: AsyncConnection, subscription: stripe_subscriptions.StripeSubscription = subscription
            ) -> str:
                return await apply_subscription.apply(conn, self._catalogs, subscription, _COMPARING, self._clock.now())

            differences += await self._difference(
                "subscription", tables.subscriptions, subscription.subscription_id, apply
            )
        known = await self._database.read(lambda conn: _living_subscriptions(conn, account_id))
        there = {parse.nested(data, "id") for data in fetched}
        return differences + [
            discrepancies.ObjectDiscrepancy("subscription", owner, subscription_id, "Stripe does not list it")
            for owner, subscription_id in known
            if subscription_id not in there
        ]

    async def _compare_invoices(
        self, fetched: Sequence[client.Data], account_id: str | None, since: datetime
    ) -> list[discrepancies.ObjectDiscrepancy]:
        differences = []
        for data in fetched:
            try:
                invoice = await fetch_invoices.complete(self._stripe, data)
            except errors.StripeObjectUnreadable as error:
                differences += await self._unreadable("invoice", data, error)
                continue

            async def apply(conn: AsyncConnection, invoice: Any = invoice) -> str:  # noqa: ANN401 - bound here
                return await apply_invoice.apply(conn, invoice, _COMPARING, self._clock.now())

            differences += await self._difference("invoice", tables.invoices, invoice.invoice_id, apply)
        known = await self._database.read(lambda conn: _invoices_since(conn, account_id, since))
        there = {parse.nested(data, "id") for data in fetched}
        return differences + [
            discrepancies.ObjectDiscrepancy("invoice", owner, invoice_id, "Stripe does not list it")
            for owner, invoice_id in known
            if invoice_id not in there
        ]

    async def _compare_repayments(
        self, customers: Sequence[str], account_id: str | None, since: datetime
    ) -> list[discrepancies.ObjectDiscrepancy]:
        """Compare refunds and disputes: of the charges that have any, and of the invoices that have any here."""
        charges = await self._fetched(
            customers, account_id, lambda customer_id: self._stripe.every_charge(customer_id, since)
        )
        found: dict[str, fetch_repayments.Repaid] = {}
        for charge in charges:
            payment_intent = fetch_repayments.payment_intent_of(charge)
            if payment_intent is not None and fetch_repayments.is_paid_back(charge):
                for repaid in await fetch_repayments.of_payment(self._stripe, payment_intent):
                    found[repaid.invoice_id] = repaid
        for invoice_id in await self._database.read(lambda conn: invoices_store.repaid_since(conn, account_id, since)):
            if invoice_id not in found:
                found[invoice_id] = await fetch_repayments.of_invoice(self._stripe, invoice_id)
        differences = []
        for repaid in found.values():

            async def apply(conn: AsyncConnection, repaid: fetch_repayments.Repaid = repaid) -> str:
                row = await _row(conn, tables.invoices, repaid.invoice_id)
                if row is None:
                    return ""  # an invoice that is missing here is a difference of its own
                await invoices_store.save_repaid(conn, row["account_id"], repaid, self._clock.now())
                return str(row["account_id"])

            differences += await self._difference(_REPAYMENT, tables.invoices, repaid.invoice_id, apply)
        return differences

    async def _refresh_repayment(self, invoice_id: str, origin: audit_store.Origin) -> None:
        repaid = await fetch_repayments.of_invoice(self._stripe, invoice_id)
        invoice = await fetch_invoices.complete(self._stripe, await self._stripe.invoice(invoice_id))
        now = self._clock.now()
        await self._database.run(lambda conn: apply_invoice.apply_repaid(conn, repaid, invoice, origin, now))

    async def _unreadable(
        self, kind: str, data: client.Data, error: errors.StripeObjectUnreadable
    ) -> list[discrepancies.ObjectDiscrepancy]:
        """Return the row of an object that cannot be read; nothing if it belongs to another product's customer."""
        customer_id = _customer_of(data)
        object_id = parse.optional_text(parse.nested(data, "id")) or ""
        table = tables.subscriptions if kind == "subscription" else tables.invoices

        async def owner(conn: AsyncConnection) -> str | None:
            if customer_id is not None:
                return await customers_store.account_of_customer(conn, customer_id)
            row = await _row(conn, table, object_id)
            return None if row is None else str(row["account_id"])

        account_id = await self._database.read(owner)
        return (
            [] if account_id is None else [discrepancies.ObjectDiscrepancy(kind, account_id, object_id, error.message)]
        )

    async def _difference(
        self, kind: str, table: sa.Table, object_id: str, apply: _Apply
    ) -> list[discrepancies.ObjectDiscrepancy]:
        async def work(conn: AsyncConnection) -> None:
            before = await _row(conn, table, object_id)
            account_id = await apply(conn)
            raise _Undone(account_id, before, await _row(conn, table, object_id))

        try:
            await self._database.run(work)
        except _Undone as found:
            detail = _detail(found.before, found.after)
            return [discrepancies.ObjectDiscrepancy(kind, found.account_id, object_id, detail)] if detail else []
        except apply_subscription.NotOurs:
            return []  # another product's subscription or invoice of our customer
        except errors.StripeObjectUnreadable as error:
            return [discrepancies.ObjectDiscrepancy(kind, "", object_id, str(error))]
        return []

    async def _refresh_invoice(self, difference: discrepancies.ObjectDiscrepancy, origin: audit_store.Origin) -> None:
        try:
            invoice = await fetch_invoices.complete(self._stripe, await self._stripe.invoice(difference.object_id))
        except client.NotAtStripe:
            invoice = None
        now = self._clock.now()

        async def apply(conn: AsyncConnection) -> None:
            lease = await leases.take(conn, difference.object_id, now)
            if lease is None:
                raise errors.LostRace("a worker is updating the invoice")
            if invoice is not None:
                await apply_invoice.apply(conn, invoice, origin, now)
            else:
                row = await _row(conn, tables.invoices, difference.object_id)
                if row is not None:
                    await apply_invoice.remove(conn, difference.object_id, row["customer_id"], origin, now)
            await leases.end(conn, lease, now)

        await self._database.run(apply)


def _detail(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    if before is None or after is None:
        return "" if before is after else "is not stored here" if before is None else "is not ours"
    return ", ".join(
        f"{name}: {_short(before[name])} is {_short(after[name])} at Stripe"
        for name in after
        if name not in _NOT_COMPARED and before[name] != after[name]
    )


def _short(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, list):
        kinds = [one[0] for one in value if isinstance(one, tuple)]  # of findings
        return ", ".join(kinds) if kinds else "other" if value else "none"
    return str(value)


def _customer_of(data: client.Data) -> str | None:
    """Return an object's customer; None if it cannot be read."""
    return parse.optional_id(parse.nested(data, "customer"))


async def _row(conn: AsyncConnection, table: sa.Table, object_id: str) -> Mapping[str, Any] | None:
    column = table.c.subscription_id if table is tables.subscriptions else table.c.invoice_id
    row = (await conn.execute(sa.select(table).where(column == object_id))).mappings().one_or_none()
    if row is None:
        return None
    found = await findings_store.open_about(conn, row["account_id"], object_id)
    return {**row, "findings": sorted((kind, one.detail) for kind, one in found.items())}


async def _customers(conn: AsyncConnection, account_id: str | None) -> list[str]:
    customers = tables.stripe_customers.c
    query = sa.select(customers.customer_id).order_by(customers.customer_id)
    if account_id is not None:
        query = query.where(customers.account_id == account_id)
    return list((await conn.execute(query)).scalars())


async def _living_subscriptions(conn: AsyncConnection, account_id: str | None) -> list[tuple[str, str]]:
    subscription = tables.subscriptions.c
    query = sa.select(subscription.account_id, subscription.subscription_id).where(
        subscription.status.not_in(stripe_subscriptions.OVER)
    )
    if account_id is not None:
        query = query.where(subscription.account_id == account_id)
    return [(row[0], row[1]) for row in await conn.execute(query)]


async def _invoices_since(conn: AsyncConnection, account_id: str | None, since: datetime) -> list[tuple[str, str]]:
    invoice = tables.invoices.c
    query = sa.select(invoice.account_id, invoice.invoice_id).where(invoice.created_at >= since)
    if account_id is not None:
        query = query.where(invoice.account_id == account_id)
    return [(row[0], row[1]) for row in await conn.execute(query)]
