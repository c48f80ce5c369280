"""Reads the data of a decision: the meter that the caller names, the facts, and the catalogs of the terms."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, versions
from billing_svc.metering.quota import rules, store, terms
from billing_svc.platform import errors, values
from billing_svc.platform.database import direct, transactions


class MeterQuery(NamedTuple):
    """An account, and either a meter or an operation; the other is empty."""

    account_id: str
    meter: str
    operation: str


@values.value
class MeterState:
    """What is known of an account and meter; the terms at any instant follow from it."""

    asked: MeterQuery
    meter: str
    facts: store.MeterFacts
    catalogs: Mapping[int, model.Catalog]

    @property
    def newest(self) -> model.Catalog:
        """The catalog that says which meters and operations there are."""
        return self.catalogs[self.facts.account_state.newest_catalog]

    def terms_at(self, at: datetime) -> terms.EffectiveTerms:
        """Return the terms in force at an instant."""
        return terms.effective_terms(self.facts.account_state, self.catalogs, at)

    @property
    def is_gauge(self) -> bool:
        """Say whether the meter has a level instead of a sum."""
        return self.newest.meters[self.meter].kind == "gauge"

    def counter_of(self, under: terms.EffectiveTerms) -> rules.Counter:
        """Return a period's counter, with all live holds; before the first event it is 0, a gauge's at its level."""
        counter = self.facts.counters.get(under.period.start, rules.Counter()).holding(self.facts.held)
        if not self.is_gauge:
            return counter
        counter = replace(counter, level=self.facts.level)
        return rules.raise_peak(self.allowance(under, under.period.start), counter)

    def allowance(self, under: terms.EffectiveTerms, at: datetime, used_at: datetime | None = None) -> terms.Allowance:
        """Return the meter's allowance under some terms, with the account's override."""
        return under.allowance(self.meter, self.facts.override, at, used_at)

    def units(self, under: terms.EffectiveTerms, quantity: int) -> int:
        """Return a quantity in the meter's units; an operation has the cost of the catalog version that was sold."""
        if not self.asked.operation:
            return quantity
        meter, cost = self.newest.meter_of_operation(self.asked.operation)
        sold = under.catalog.meters.get(meter)
        return quantity * (cost if sold is None else sold.operations.get(self.asked.operation, cost))


async def read(
    conn: AsyncConnection, catalogs: versions.CatalogCache, asked: Sequence[MeterQuery], now: datetime
) -> list[MeterState | errors.BillingError]:
    """Return the state of each account and meter asked for, in order; an unknown meter or operation gets its error.

    Costs one statement. Raises RetryTransaction when another process has published a catalog since the last call; the
    catalog is loaded then.
    """
    known, _ = await read_after(conn, catalogs, asked, now, lambda _keys: ())
    return known


async def read_after(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    asked: Sequence[MeterQuery],
    now: datetime,
    before: Callable[[Collection[tuple[str, str]]], Iterable[direct.Call]],
) -> tuple[list[MeterState | errors.BillingError], list[list[direct.Row]]]:
    """Return the same states, read after other statements of the same round trip, and the rows of these statements.

    `before` makes the other statements from the accounts and meters asked for; an unknown meter is "".
    """
    catalog = await catalogs.latest(conn)
    keys = _keys(catalog, asked)
    levels = any(meter and catalog.meters[meter].kind == "gauge" for _, meter in keys)
    windows = catalogs.limit_rates
    facts, others = await store.read_facts(conn, keys, now, *before(keys), levels=levels, windows=windows)
    known = await _known(conn, catalogs, catalog, asked, keys, facts)
    if catalogs.limit_rates is not windows:  # a catalog that was just loaded has a rate limit
        raise transactions.RetryTransaction
    return known, others


async def read_account_states(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    asked: Sequence[MeterQuery],
    now: datetime,
    beside: Callable[[Collection[tuple[str, str]]], Iterable[direct.Call]],
) -> tuple[list[MeterState | errors.BillingError], list[list[direct.Row]]]:
    """Return the same states without usage, and the rows of other statements that ran in the same round trip.

    `beside` makes the other statements from the accounts and meters asked for.
    """
    catalog = await catalogs.latest(conn)
    keys = _keys(catalog, asked)
    facts, others = await store.read_account_states(conn, keys, now, *beside(keys))
    return await _known(conn, catalogs, catalog, asked, keys, facts), others


async def _known(
    conn: AsyncConnection,
    catalogs: versions.CatalogCache,
    catalog: model.Catalog,
    asked: Sequence[MeterQuery],
    keys: Sequence[tuple[str, str]],
    facts: Sequence[store.MeterFacts],
) -> list[MeterState | errors.BillingError]:
    newest = facts[0].account_state.newest_catalog  # the statement reads one snapshot, so all rows have the same
    if await catalogs.get(conn, newest) is not catalog:
        raise transactions.RetryTransaction
    loaded = {newest: catalog}
    for one in facts:
        for sold in one.account_state.subscriptions:
            if sold.catalog_version not in loaded:
                loaded[sold.catalog_version] = await catalogs.get(conn, sold.catalog_version)
    return [
        MeterState(one, meter, fact, loaded) if meter else _unknown(one)
        for one, (_, meter), fact in zip(asked, keys, facts, strict=True)
    ]


async def read_account_state(
    conn: AsyncConnection, catalogs: versions.CatalogCache, account_id: str, now: datetime
) -> MeterState:
    """Return the state of an account without any meter."""
    (facts,), _ = await store.read_facts(conn, [(account_id, "")], now, levels=False, windows=False)
    loaded = {version: await catalogs.get(conn, version) for version in facts.account_state.catalog_versions()}
    return MeterState(MeterQuery(account_id, "", ""), "", facts, loaded)


def _keys(catalog: model.Catalog, asked: Sequence[MeterQuery]) -> list[tuple[str, str]]:
    """Return account and meter of each question; the meter is "" if the catalog does not have it."""
    return [(one.account_id, _meter(catalog, one)) for one in asked]


def _meter(catalog: model.Catalog, asked: MeterQuery) -> str:
    try:
        meter = catalog.meter_of_operation(asked.operation)[0] if asked.operation else asked.meter
    except KeyError:
        return ""
    return meter if meter in catalog.meters else ""


def _unknown(asked: MeterQuery) -> errors.BillingError:
    if asked.operation:
        return errors.OperationNotFound(
            f"operation: the catalog has no operation {asked.operation!r}", {"operation": asked.operation}
        )
    return errors.MeterNotFound(f"meter: the catalog has no meter {asked.meter!r}", {"meter": asked.meter})
