"""From what a caller names to what a decision needs: the meter, the facts, and the catalogs of their terms."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, versions
from billing_svc.metering.quota import rules, store, terms
from billing_svc.platform import errors, values
from billing_svc.platform.database import direct, transactions


class Asked(NamedTuple):
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
    catalog = await catalogs.latest(conn)
    keys = _keys(catalog, asked)
    levels = any(meter and catalog.meters[meter].kind == "gauge" for _, meter in keys)
    windows = catalogs.limit_rates
    facts = await store.read_facts(conn, keys, now, levels=levels, windows=windows)
    known = await _known(conn, catalogs, catalog, asked, keys, facts)
    if catalogs.limit_rates is not windows:  # by an old catalog, just loaded
        raise transactions.RetryTransaction
    return known


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
    catalog = await catalogs.latest(conn)
    keys = _keys(catalog, asked)
    facts, others = await store.read_standings(conn, keys, now, *beside(keys))
    return await _known(conn, catalogs, catalog, asked, keys, facts), others


async def _known(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    catalog: model.Catalog,
    asked: Sequence[Asked],
    keys: Sequence[tuple[str, str]],
    facts: Sequence[store.Facts],
) -> list[Known | errors.BillingError]:
    newest = facts[0].standing.newest_catalog  # of the statement's snapshot, so of all
    if await catalogs.get(conn, newest) is not catalog:
        raise transactions.RetryTransaction
    loaded = {newest: catalog}
    for one in facts:
        for sold in one.standing.subscriptions:
            if sold.catalog_version not in loaded:
                loaded[sold.catalog_version] = await catalogs.get(conn, sold.catalog_version)
    return [
        Known(one, meter, fact, loaded) if meter else _unknown(one)
        for one, (_, meter), fact in zip(asked, keys, facts, strict=True)
    ]


async def read_standing(
    conn: AsyncConnection, catalogs: versions.CatalogCache, account_id: str, now: datetime
) -> Known:
    """Return what is known of an account apart from any meter."""
    (facts,) = await store.read_facts(conn, [(account_id, "")], now, levels=False, windows=False)
    loaded = {version: await catalogs.get(conn, version) for version in facts.standing.catalog_versions()}
    return Known(Asked(account_id, "", ""), "", facts, loaded)


def _keys(catalog: model.Catalog, asked: Sequence[Asked]) -> list[tuple[str, str]]:
    """Return each one's account and meter; none where the catalog does not know what is asked for."""
    return [(one.account_id, _meter(catalog, one)) for one in asked]


def _meter(catalog: model.Catalog, asked: Asked) -> str:
    try:
        meter = catalog.meter_of_operation(asked.operation)[0] if asked.operation else asked.meter
    except KeyError:
        return ""
    return meter if meter in catalog.meters else ""


def _unknown(asked: Asked) -> errors.BillingError:
    if asked.operation:
        return errors.OperationNotFound(
            f"operation: the catalog has no operation {asked.operation!r}", {"operation": asked.operation}
        )
    return errors.MeterNotFound(f"meter: the catalog has no meter {asked.meter!r}", {"meter": asked.meter})
