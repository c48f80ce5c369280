"""Versions: numbered, immutable, one for each change."""

import asyncio
import functools
from datetime import UTC, datetime
from pathlib import Path

import pytest

from billing_svc.catalog import loading, model, versions
from billing_svc.platform.database import transactions as running

CATALOGS = Path(__file__).parents[3] / "catalogs"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def load(name: str, old: str = "", new: str = "") -> model.Catalog:
    text = (CATALOGS / f"{name}.yaml").read_text()
    assert old in text
    return loading.load_text(text.replace(old, new), name)


async def publish(transactions: running.Transactions, catalog: model.Catalog) -> tuple[int, bool]:
    return await transactions.run(lambda conn: versions.publish(conn, catalog, "test", NOW))


@pytest.mark.parametrize("name", ["agentplatform", "automation", "kalshibook", "nyqst", "orgs"])
async def test_what_was_published_is_loaded_equal_and_in_order(transactions: running.Transactions, name: str) -> None:
    catalog = load(name)
    assert await publish(transactions, catalog) == (1, True)
    stored = await transactions.run(lambda conn: versions.load(conn, 1))
    assert stored == catalog
    assert versions.canonical_text(stored) == versions.canonical_text(catalog)
    assert list(stored.plans) == list(catalog.plans)
    assert [list(plan.prices) for plan in stored.plans.values()] == [
        list(plan.prices) for plan in catalog.plans.values()
    ]
    assert [plan.key for plan in stored.plans.values()] == list(catalog.plans)


async def test_only_a_change_makes_a_version(transactions: running.Transactions) -> None:
    assert await transactions.run(versions.newest) is None
    assert await publish(transactions, load("nyqst")) == (1, True)
    assert await publish(transactions, load("nyqst")) == (1, False)
    assert await publish(transactions, load("nyqst", '"0.50"', '"0.5"')) == (1, False)
    assert await publish(transactions, load("nyqst", "24h", "1d")) == (1, False)
    assert await publish(transactions, load("nyqst", "included: 5,", "included: 6,")) == (2, True)
    assert await transactions.run(versions.newest) == 2


async def test_going_back_to_an_older_content_is_a_new_version(transactions: running.Transactions) -> None:
    changed = load("nyqst", "included: 5,", "included: 6,")
    numbers = [(await publish(transactions, catalog))[0] for catalog in (load("nyqst"), changed, load("nyqst"))]
    assert numbers == [1, 2, 3]


async def test_many_publishers_of_one_content_make_one_version(transactions: running.Transactions) -> None:
    catalog = load("kalshibook")
    answers = await asyncio.gather(*(publish(transactions, catalog) for _ in range(4)))
    assert sorted(answers) == [(1, False)] * 3 + [(1, True)]


async def test_publishers_of_different_contents_each_get_a_version(transactions: running.Transactions) -> None:
    contents = [load("nyqst", "included: 5,", f"included: {number},") for number in range(10, 14)]
    answers = await asyncio.gather(*(publish(transactions, catalog) for catalog in contents))
    assert sorted(answers) == [(number, True) for number in range(1, 5)]
    for (number, _), catalog in zip(answers, contents, strict=True):
        assert await transactions.run(functools.partial(versions.load, version=number)) == catalog


async def test_a_version_that_was_never_published_is_a_lookup_error(transactions: running.Transactions) -> None:
    with pytest.raises(LookupError, match="catalog version 7 was never published"):
        await transactions.run(lambda conn: versions.load(conn, 7))


async def test_the_cache_loads_a_version_once(transactions: running.Transactions) -> None:
    await publish(transactions, load("nyqst"))
    cache = versions.CatalogCache()
    first = await transactions.run(lambda conn: cache.get(conn, 1))
    second = await transactions.run(lambda conn: cache.get(conn, 1))
    assert first is second


async def test_a_meter_keeps_its_kind_for_ever(transactions: running.Transactions) -> None:
    """A sum that is read as a peak would hide what lies beyond it from the bill."""
    await publish(transactions, load("agentplatform"))
    gone = load("nyqst")
    await publish(transactions, gone)
    other = load("agentplatform", "kind: gauge", "kind: consumable")
    with pytest.raises(loading.CatalogError) as refused:
        await publish(transactions, other)
    assert "meters.storage_gb.kind: was gauge in version 1" in refused.value.errors[0]
    assert await transactions.run(versions.newest) == 2
