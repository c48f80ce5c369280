"""From what a caller names to what a decision needs: the meter, the facts, and the catalogs of their terms."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import errors, values
from billing_svc.catalog import model, versions
from billing_svc.database import direct, transactions
from billing_svc.quota import rules, store, terms

T = TypeVar("T")


@values.value
class Asked:
    """An account, and a meter or an operation (the other one is empty)."""

    account_id: str
    meter: str
    operation: str


@values.value
class Known:
    """The answer to `Asked`: enough to derive the terms at any instant."""

    asked: Asked
    meter: str
    facts: store.Facts
    catalogs: Mapping[int, model.Catalog]

    @property
    def newest(self) -> model.Catalog:
        """The catalog that says which meters and operations there are."""
        return self.catalogs[self.facts.standing.newest_catalog]

    def terms_at(self, at: datetime) -> terms.Terms:
        """Return the terms in force at `at`."""
        return terms.at_instant(self.facts.standing, self.catalogs, at)

    @property
    def is_gauge(self) -> bool:
        """Say whether the meter has a level instead of a sum."""
        return self.newest.meters[self.meter].kind == "gauge"

    def counter_of(self, under: terms.Terms) -> rules.Counter:
        """Return the counter of a period as it stands; a gauge's opens at its level."""
        counter = self.facts.counters.get(under.period.start, rules.Counter())
        if not self.is_gauge:
            return counter
        counter = replace(counter, level=self.facts.level)
        return rules.raise_peak(self.allowance(under, under.period.start), counter)

    def allowance(self, under: terms.Terms, at: datetime) -> terms.Allowance:
        """Return what there is of the meter under some terms, with the account's own override."""
        return under.allowance(self.meter, self.facts.override, at)

    def units(self, under: terms.Terms, quantity: int) -> int:
        """Return the units that a quantity comes to: an operation costs what it cost when the plan was sold."""
        if not self.asked.operation:
            return quantity
        meter, cost = self.newest.meter_of_operation(self.asked.operation)
        sold = under.catalog.meters.get(meter)
        return quantity * (cost if sold is None else sold.operations.get(self.asked.operation, cost))


async def read(
    conn: AsyncConnection, catalogs: versions.CatalogCache, asked: Sequence[Asked], now: datetime
) -> list[Known | errors.BillingError]:
    """Return what is known for each one asked, in order; in its place the error of one that names nothing known.

    One statement. Raises RetryTransaction when another process has published a catalog since the last time; it is
    loaded then.
    """

    async def facts(keys: Sequence[tuple[str, str]]) -> tuple[list[store.Facts], None]:
        return await store.read_facts(conn, keys, now), None

    return (await _read(conn, catalogs, asked, facts))[0]


async def read_standings(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    asked: Sequence[Asked],
    now: datetime,
    beside: Callable[[Collection[tuple[str, str]]], Iterable[direct.Call]],
) -> tuple[list[Known | errors.BillingError], list[list[direct.Row]]]:
    """Return the same without what was used, and what other statements read in the same round trip.

    `beside` returns those, given each account and meter that was asked for.
    """
    return await _read(conn, catalogs, asked, lambda keys: store.read_standings(conn, keys, now, *beside(keys)))


async def _read(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    asked: Sequence[Asked],
    read_facts: Callable[[Sequence[tuple[str, str]]], Awaitable[tuple[list[store.Facts], T]]],
) -> tuple[list[Known | errors.BillingError], T]:
    catalog = await catalogs.latest(conn)
    meters = [_meter(catalog, one) for one in asked]
    keys = [(one.account_id, meter or "") for one, meter in zip(asked, meters, strict=True)]
    facts, others = await read_facts(keys)
    newest = facts[0].standing.newest_catalog  # of the statement's snapshot, so of all
    if await catalogs.get(conn, newest) is not catalog:
        raise transactions.RetryTransaction
    versions_needed = {newest, *(sold.catalog_version for one in facts for sold in one.standing.subscriptions)}
    loaded = {version: await catalogs.get(conn, version) for version in versions_needed}
    known = [
        _unknown(one) if meter is None else Known(one, meter, fact, loaded)
        for one, meter, fact in zip(asked, meters, facts, strict=True)
    ]
    return known, others


async def read_standing(
    conn: AsyncConnection, catalogs: versions.CatalogCache, account_id: str, now: datetime
) -> Known:
    """Return what is known of an account apart from any meter."""
    (facts,) = await store.read_facts(conn, [(account_id, "")], now)
    loaded = {version: await catalogs.get(conn, version) for version in facts.standing.catalog_versions()}
    return Known(Asked(account_id, "", ""), "", facts, loaded)


def _meter(catalog: model.Catalog, asked: Asked) -> str | None:
    try:
        meter = catalog.meter_of_operation(asked.operation)[0] if asked.operation else asked.meter
    except KeyError:
        return None
    return meter if meter in catalog.meters else None


def _unknown(asked: Asked) -> errors.BillingError:
    if asked.operation:
        return errors.OperationNotFound(
            f"operation: the catalog has no operation {asked.operation!r}", {"operation": asked.operation}
        )
    return errors.MeterNotFound(f"meter: the catalog has no meter {asked.meter!r}", {"meter": asked.meter})
