import asyncio
import contextlib
from typing import Any

import pytest
import sqlalchemy as sa

from billing_svc.catalog import model, versions
from billing_svc.platform import clock, errors
from billing_svc.platform.database import tables
from billing_svc.platform.database import transactions as transactions_module
from billing_svc.stripe import catalog_objects, catalog_sync, client
from tests.billing_svc.sandboxed import Sandbox, catalog_of

CATALOG_NAMES = ("nyqst", "kalshibook", "orgs", "agentplatform", "automation")
DEARER = {'"20.00"': '"25.00"'}

Database = transactions_module.Transactions


async def apply(database: Database, stripe: client.Stripe, catalog: model.Catalog) -> int:
    return (
        await catalog_sync.apply(database, stripe, catalog, "operator:test", clock.Clock(), lambda _line: None)
    ).version


async def applied(database: Database, stripe: client.Stripe, catalog: model.Catalog) -> int:
    """Apply a catalog, again while Stripe is busy with what another process applies, as its error asks."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(errors.StripeUnavailable):
                return await apply(database, stripe, catalog)


async def stored(database: Database) -> list[sa.Row[Any]]:
    """Return all stored prices, oldest first."""
    query = sa.select(tables.stripe_prices).order_by(tables.stripe_prices.c.created_at, tables.stripe_prices.c.price_id)
    return await database.read(lambda conn: _all(conn, query))


async def _all(conn: Any, query: sa.Select[Any]) -> list[sa.Row[Any]]:  # noqa: ANN401 - a connection
    return list(await conn.execute(query))


async def at_stripe(sandbox: Sandbox, catalog_name: str) -> dict[str, list[Any]]:
    """Return a catalog's objects at Stripe, without ids that differ between runs."""
    products = [one["id"] for one in await sandbox.all("/v1/products")]
    prices = [
        (one["lookup_key"], one["product"], one["unit_amount_decimal"], one["active"])
        for one in await sandbox.all("/v1/prices")
    ]
    meters = [one["event_name"] for one in await sandbox.all("/v1/billing/meters")]
    own = f"{catalog_name}_"
    return {
        "products": sorted(one.removeprefix(own) for one in products if one.startswith(own)),
        "prices": sorted(
            (
                [(key or "").removeprefix(own), product.removeprefix(own), amount, active]
                for key, product, amount, active in prices
                if product.startswith(own)
            )
        ),
        "meters": sorted(one.removeprefix(own) for one in meters if one.startswith(own)),
    }


async def test_a_catalog_applied_again_makes_nothing(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    for name in CATALOG_NAMES:
        catalog = catalog_of(name)
        version = await apply(transactions, stripe_client, catalog)
        writes = await sandbox.writes()
        lookup_keys = {one.lookup_key for one in catalog_objects.wanted_prices(catalog)}
        assert {one["lookup_key"] for one in await sandbox.all("/v1/prices")} >= lookup_keys
        assert await apply(transactions, stripe_client, catalog) == version
        assert await sandbox.writes() == writes, name


async def test_the_numbers_that_stripe_multiplies_are_exact(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    await apply(transactions, stripe_client, catalog_of("agentplatform"))
    await apply(transactions, stripe_client, catalog_of("kalshibook"))
    amounts = {one["lookup_key"]: one["unit_amount_decimal"] for one in await sandbox.all("/v1/prices")}
    assert amounts["agentplatform_standard_monthly"] == "9900"
    assert amounts["agentplatform_standard_llm_tokens"] == "0.001"
    assert amounts["agentplatform_enterprise_api_calls"] == "0.05"
    assert amounts["kalshibook_free_payg_credits"] == "0.8"


async def test_a_changed_price_is_a_new_one_and_going_back_a_third(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    for catalog in (catalog_of("nyqst"), catalog_of("nyqst", DEARER), catalog_of("nyqst")):
        await apply(transactions, stripe_client, catalog)
    base = [row for row in await stored(transactions) if row.lookup_key == "nyqst_pro_monthly"]
    assert [(row.catalog_version, row.is_current) for row in base] == [(1, False), (2, False), (3, True)]
    prices = {one["id"]: one for one in await sandbox.all("/v1/prices")}
    seen = [(prices[row.price_id]["unit_amount"], prices[row.price_id]["active"]) for row in base]
    assert seen == [(2000, False), (2500, False), (2000, True)]
    assert [prices[row.price_id]["lookup_key"] for row in base] == [None, None, "nyqst_pro_monthly"]
    # An unchanged price is not replaced.
    assert len([row for row in await stored(transactions) if row.lookup_key == "nyqst_pro_runs"]) == 1


async def interrupted(
    database: Database, stripe: client.Stripe, sandbox: Sandbox, catalog: model.Catalog, number: int, *, after: bool
) -> bool:
    """Apply in a process that is killed at its n-th call to Stripe; returns whether there was an n-th call."""
    task = asyncio.create_task(apply(database, stripe, catalog))
    sandbox.faults.crash(number, after=after, task=lambda: task)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    sandbox.faults.clear()
    await database.drain()
    return task.cancelled()


@pytest.mark.parametrize("after", [False, True])
async def test_a_sync_killed_at_any_call_and_repeated_ends_the_same(
    transactions: Database,
    stripe_client: client.Stripe,
    sandbox: Sandbox,
    after: bool,  # noqa: FBT001 - pytest's way
) -> None:
    await apply(transactions, stripe_client, catalog_of("nyqst"))
    wanted = await at_stripe(sandbox, "nyqst")
    await apply(transactions, stripe_client, catalog_of("nyqst", DEARER))
    wanted_dearer = await at_stripe(sandbox, "nyqst")
    assert wanted != wanted_dearer
    number, was_interrupted = 0, True
    while was_interrupted:
        number += 1
        # Each attempt uses another catalog name, so that it begins without objects at Stripe.
        name = {"catalog: nyqst": f"catalog: nyqst{number}"}
        was_interrupted = await interrupted(
            transactions, stripe_client, sandbox, catalog_of("nyqst", name), number, after=after
        )
        await apply(transactions, stripe_client, catalog_of("nyqst", name))
        assert await at_stripe(sandbox, f"nyqst{number}") == wanted, number
        await interrupted(transactions, stripe_client, sandbox, catalog_of("nyqst", name | DEARER), number, after=after)
        await apply(transactions, stripe_client, catalog_of("nyqst", name | DEARER))
        assert await at_stripe(sandbox, f"nyqst{number}") == wanted_dearer, number
    assert number > 9, "two products, a meter and two prices, each looked for and made"


async def test_a_fault_of_stripe_s_is_repeated_without_duplicates(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    async def fail(method: str, _path: str) -> int | None:
        return 500 if method == "POST" else None

    sandbox.faults.after = fail
    with pytest.raises(client.KeySpent):
        await apply(transactions, stripe_client, catalog_of("nyqst"))
    assert await transactions.read(versions.newest) is None
    sandbox.faults.clear()
    await apply(transactions, stripe_client, catalog_of("nyqst"))
    assert len(await sandbox.all("/v1/prices")) == 2
    assert len(await sandbox.all("/v1/products")) == 2
    assert len(await sandbox.all("/v1/billing/meters")) == 1


@pytest.mark.parametrize("replaces", [False, True])
async def test_two_at_once_make_everything_once(
    transactions: Database,
    stripe_client: client.Stripe,
    sandbox: Sandbox,
    replaces: bool,  # noqa: FBT001 - pytest's way
) -> None:
    catalog = catalog_of("nyqst")
    if replaces:
        await apply(transactions, stripe_client, catalog)
        catalog = catalog_of("nyqst", DEARER)
    done = await asyncio.gather(*(applied(transactions, stripe_client, catalog) for _ in range(2)))
    assert set(done) == {2 if replaces else 1}
    assert len(await sandbox.all("/v1/products")) == 2
    assert len(await sandbox.all("/v1/billing/meters")) == 1
    active = [one["lookup_key"] for one in await sandbox.all("/v1/prices") if one["active"]]
    assert sorted(active) == ["nyqst_pro_monthly", "nyqst_pro_runs"]


async def test_two_different_catalogs_at_once_leave_the_newest_with_its_own_prices(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    await apply(transactions, stripe_client, catalog_of("nyqst"))
    dearer, dearest = catalog_of("nyqst", DEARER), catalog_of("nyqst", {'"20.00"': '"30.00"'})
    await asyncio.gather(*(applied(transactions, stripe_client, one) for one in (dearer, dearest)))
    newest = await transactions.read(versions.newest)
    assert newest == 3
    catalog = await transactions.read(lambda conn: versions.load(conn, 3))
    (current,) = [row for row in await stored(transactions) if row.lookup_key == "nyqst_pro_monthly" and row.is_current]
    price = await sandbox.call("GET", f"/v1/prices/{current.price_id}")
    assert price["unit_amount"] == catalog.minor_units(catalog.plans["pro"].prices["monthly"])
    assert price["active"]
    assert current.catalog_version == 3


async def test_another_s_price_under_our_key_is_replaced(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    await sandbox.call("POST", "/v1/products", id="theirs", name="Theirs")
    await sandbox.call(
        "POST", "/v1/prices", product="theirs", currency="usd", unit_amount=2000, lookup_key="nyqst_pro_monthly"
    )
    await apply(transactions, stripe_client, catalog_of("nyqst"))
    (ours,) = [one for one in await sandbox.all("/v1/prices") if one["lookup_key"] == "nyqst_pro_monthly"]
    assert (ours["product"], ours["recurring"]["interval"]) == ("nyqst_pro", "month")


async def compare(stripe: client.Stripe, catalog: model.Catalog) -> list[tuple[str, str, bool]]:
    _, differences = await catalog_sync.compare(stripe, catalog)
    return [(one.kind, one.key, one.drift) for one in differences]


async def test_the_plan_tells_the_difference_and_changes_nothing(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    missing = [
        ("product", "nyqst_pro", False),
        ("price", "nyqst_pro_monthly", False),
        ("product", "nyqst_pro_runs", False),
        ("meter", "nyqst_pro_runs", False),
        ("price", "nyqst_pro_runs", False),
        ("portal", "nyqst", False),
    ]
    assert await compare(stripe_client, catalog_of("nyqst")) == missing
    assert await sandbox.writes() == []
    await apply(transactions, stripe_client, catalog_of("nyqst"))
    writes = await sandbox.writes()
    assert await compare(stripe_client, catalog_of("nyqst")) == []
    assert await compare(stripe_client, catalog_of("nyqst", DEARER)) == [("price", "nyqst_pro_monthly", False)]
    renamed = {"name: Pro": "name: Professional"}
    assert await compare(stripe_client, catalog_of("nyqst", renamed)) == [
        ("product", "nyqst_pro", False),
        ("product", "nyqst_pro_runs", False),
        ("meter", "nyqst_pro_runs", False),
    ]
    assert await sandbox.writes() == writes


async def test_a_renamed_plan_is_renamed_at_stripe_and_back(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    for name in ("Pro", "Professional", "Pro"):
        catalog = catalog_of("nyqst", {"name: Pro": f"name: {name}"})
        await apply(transactions, stripe_client, catalog)
        assert (await sandbox.call("GET", "/v1/products/nyqst_pro"))["name"] == name
        assert await compare(stripe_client, catalog) == []
    assert len(await sandbox.all("/v1/prices")) == 2


async def test_what_somebody_changed_at_stripe_is_told_and_mended(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    catalog = catalog_of("nyqst")
    await apply(transactions, stripe_client, catalog)
    before = {row.lookup_key: row.price_id for row in await stored(transactions)}
    (meter,) = await sandbox.all("/v1/billing/meters")
    (portal,) = await sandbox.all("/v1/billing_portal/configurations")
    await sandbox.call("POST", f"/v1/billing/meters/{meter['id']}/deactivate")
    await sandbox.call("POST", f"/v1/prices/{before['nyqst_pro_monthly']}", active="false")
    await sandbox.call("POST", "/v1/products/nyqst_pro", active="false")
    changed = {"features[subscription_cancel][mode]": "immediately"}
    await sandbox.call("POST", f"/v1/billing_portal/configurations/{portal['id']}", **changed)
    drift = await compare(stripe_client, catalog)
    assert drift == [
        ("product", "nyqst_pro", True),
        ("price", "nyqst_pro_monthly", True),
        ("meter", "nyqst_pro_runs", True),
        ("portal", "nyqst", True),
    ]
    assert await apply(transactions, stripe_client, catalog) == 1
    assert await compare(stripe_client, catalog) == []
    after = {row.lookup_key: row.price_id for row in await stored(transactions) if row.is_current}
    # An inactive price cannot be changed and is replaced; the meter, which has usage, stays.
    assert after["nyqst_pro_runs"] == before["nyqst_pro_runs"]
    assert after["nyqst_pro_monthly"] != before["nyqst_pro_monthly"]
    assert [one["id"] for one in await sandbox.all("/v1/billing/meters")] == [meter["id"]]
    assert [one["id"] for one in await sandbox.all("/v1/billing_portal/configurations")] == [portal["id"]]


async def test_the_portal_configuration_is_that_of_the_newest_catalog(
    transactions: Database, stripe_client: client.Stripe, sandbox: Sandbox
) -> None:
    assert await transactions.read(catalog_sync.portal_configuration) is None
    for name in ("nyqst", "orgs"):
        await apply(transactions, stripe_client, catalog_of(name))
        configurations = {
            one["metadata"]["catalog"]: one for one in await sandbox.all("/v1/billing_portal/configurations")
        }
        assert await transactions.read(catalog_sync.portal_configuration) == configurations[name]["id"]
        assert not configurations[name]["features"]["subscription_update"]["enabled"]
        assert configurations[name]["features"]["subscription_cancel"]["mode"] == "at_period_end"
