"""Brings the catalog to Stripe: compares the two, and removes the differences.

A run can be repeated or interrupted: each object is looked up before it is created, and created under a stored intent.
The version and its prices are published together after they exist at Stripe, so only existing prices are sold; replaced
prices are deactivated after that, so no inactive price is sold.
"""

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import model, versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables, transactions
from billing_svc.stripe import catalog_objects, client, intents, prices

# Catalogs are published one after another: the newest version and the current prices must be of the same catalog. The
# number must differ from all other advisory locks in the database.
PUBLISH_LOCK_KEY = 0x63_61_74_61  # "cata"
# Account id of rows that belong to no account.
_NO_ACCOUNT = ""
# The intent that created a catalog's portal configuration also stores its id, which never changes.
_PORTAL_PURPOSE = "portal_configuration:"

_REQUESTS = tables.stripe_requests


@dataclass(frozen=True, slots=True)
class Applied:
    """A published catalog: its version, and the ids at Stripe of its prices and meters by lookup key."""

    version: int
    prices: Mapping[str, str]
    meters: Mapping[str, str]
    portal_configuration: str


async def compare(
    stripe: client.Stripe, catalog: model.Catalog
) -> tuple[catalog_objects.Found, list[catalog_objects.Difference]]:
    """Return the catalog's objects at Stripe and the differences; changes nothing. Raises StripeUnavailable."""
    wanted = catalog_objects.wanted_prices(catalog)
    meters: dict[str, client.Data] = {}
    for meter in await stripe.all_meters():
        # Several meters may have had the name; at most one of them is active.
        if meter["status"] == "active" or meter["event_name"] not in meters:
            meters[meter["event_name"]] = meter
    portals = [
        configuration
        for configuration in await stripe.portal_configurations()
        if configuration["metadata"].get("catalog") == catalog.name
    ]
    found = catalog_objects.Found(
        products={
            product["id"]: product
            for product in await stripe.products(sorted({wanted_price.product_id for wanted_price in wanted}))
        },
        meters=meters,
        prices={
            price["lookup_key"]: price
            for price in await stripe.prices([wanted_price.lookup_key for wanted_price in wanted])
        },
        # The oldest configuration, if concurrent runs created two.
        portal=min(portals, key=lambda portal: (portal["created"], portal["id"]), default=None),
    )
    return found, catalog_objects.differences(catalog, wanted, found)


async def apply(
    database: transactions.Transactions,
    stripe: client.Stripe,
    catalog: model.Catalog,
    actor: str,
    now: clock.Clock,
    report: Callable[[str], None],
) -> Applied:
    """Bring the catalog to Stripe and publish it in the database; `report` gets a line for each change.

    Raises StripeUnavailable or StripeRefused; the next run finds the objects that were created by then. Raises
    CatalogError, before anything is created, if the catalog cannot follow the published versions.
    """
    await database.read(lambda conn: versions.refuse_other_kinds(conn, catalog))
    found, differences = await compare(stripe, catalog)
    sync = _Sync(stripe, intents.Requests(database, stripe, now), catalog, found)
    for difference in differences:
        await sync.remove(difference)
        report(f"{difference.kind} {difference.key}: {difference.detail}")
    wanted = catalog_objects.wanted_prices(catalog)

    async def publish(conn: AsyncConnection) -> tuple[int, bool, list[str]]:
        await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(PUBLISH_LOCK_KEY)))
        version, is_new = await versions.publish(conn, catalog, actor, now.now())
        replaced = await prices.keep(conn, wanted, sync.prices, version, now.now())
        if is_new:
            changes = {"catalog": catalog.name, "version": version}
            await audit_store.append(
                conn, audit_store.Origin(actor), _NO_ACCOUNT, "catalog.published", changes, now.now()
            )
        return version, is_new, replaced

    version, is_new, replaced = await database.run(publish)
    for price_id in replaced:
        await sync.retire(price_id)
    report(f"catalog {catalog.name}: version {version}{'' if is_new else ' is in force already'}")
    meters = {
        wanted_price.lookup_key: sync.meters[wanted_price.lookup_key]
        for wanted_price in wanted
        if wanted_price.is_metered
    }
    return Applied(version, sync.prices, meters, sync.portal)


async def portal_configuration(conn: AsyncConnection) -> str | None:
    """Return the id of the newest catalog's portal configuration; None if it was never created."""
    newest = sa.select(tables.catalog_versions.c.name).order_by(tables.catalog_versions.c.version.desc()).limit(1)
    purpose = sa.func.concat(_PORTAL_PURPOSE, newest.scalar_subquery())
    query = sa.select(_REQUESTS.c.result["id"].astext).where(
        _REQUESTS.c.account_id == _NO_ACCOUNT, _REQUESTS.c.purpose == purpose, _REQUESTS.c.state == "done"
    )
    return (await conn.execute(query)).scalar_one_or_none()


class _Sync:
    """Creates missing objects at Stripe, and corrects objects that differ."""

    def __init__(
        self,
        stripe: client.Stripe,
        writes: intents.Requests,
        catalog: model.Catalog,
        found: catalog_objects.Found,
    ) -> None:
        self._stripe = stripe
        self._requests = writes
        self._catalog = catalog
        self.prices = {key: str(price["id"]) for key, price in found.prices.items()}
        self.meters = {key: str(meter["id"]) for key, meter in found.meters.items()}
        self.portal = "" if found.portal is None else str(found.portal["id"])

    async def remove(self, difference: catalog_objects.Difference) -> None:
        """Remove a difference. If another process has removed it meanwhile, nothing changes."""
        match difference.operation:
            case "products.create":
                await self._make(
                    f"product:{difference.key}",
                    difference.operation,
                    difference.params,
                    lambda: self._product(difference.key),
                )
            case "billing.meters.create":
                self.meters[difference.key] = await self._make(
                    f"meter:{difference.key}",
                    difference.operation,
                    difference.params,
                    lambda: self._meter(difference.key),
                )
            case "prices.create":
                self.prices[difference.key] = await self._price(difference)
            case "billing_portal.configurations.create":
                self.portal = await self._make(
                    f"{_PORTAL_PURPOSE}{difference.key}",
                    difference.operation,
                    difference.params,
                    self._portal_configuration,
                )
            case _:
                await self._change(difference)

    async def retire(self, price_id: str) -> None:
        """Deactivate a price, so that it is not sold any more; existing subscriptions keep it. Repeats do nothing."""
        # A price that is no longer at Stripe cannot be sold either.
        with contextlib.suppress(client.NotAtStripe):
            await self._make(f"retire:{price_id}", "prices.deactivate", {"price": price_id}, _harmless)

    async def _price(self, difference: catalog_objects.Difference) -> str:
        wanted = difference.wanted
        if wanted is None:
            raise ValueError("a price difference has no wanted price")
        meter_id = self.meters.get(difference.key)
        params = wanted.params(meter_id)

        async def find() -> client.Data | None:
            holders = await self._stripe.prices([difference.key])
            return next((price for price in holders if wanted.is_met_by(price, meter_id)), None)

        # A return to an earlier amount needs a new price again, so the purpose includes the price that is replaced.
        purpose = f"price:{difference.key}:{'' if difference.old is None else difference.old['id']}:{_digest(params)}"
        return await self._make(purpose, difference.operation, params, find)

    async def _change(self, difference: catalog_objects.Difference) -> None:
        # The same change can be needed again after someone has undone it, so the purpose includes the last update's
        # time.
        since = "" if difference.old is None else difference.old.get("updated", "")
        purpose = f"change:{difference.kind}:{difference.key}:{since}:{_digest(difference.params)}"
        await self._make(purpose, difference.operation, difference.params, _harmless)

    async def _product(self, product_id: str) -> client.Data | None:
        return next(iter(await self._stripe.products([product_id])), None)

    async def _meter(self, event_name: str) -> client.Data | None:
        meters = await self._stripe.meters()
        return next((meter for meter in meters if meter["event_name"] == event_name), None)

    async def _portal_configuration(self) -> client.Data | None:
        found = await self._stripe.portal_configurations()
        return next(
            (
                configuration
                for configuration in found
                if configuration["metadata"].get("catalog") == self._catalog.name
            ),
            None,
        )

    async def _make(
        self, purpose: str, operation: str, params: Mapping[str, Any], find: Callable[[], Awaitable[client.Data | None]]
    ) -> str:
        """Create an object for its purpose. `find` returns it if it exists, however long ago it was created."""
        intent = intents.Intent(_NO_ACCOUNT, purpose, operation, params)
        made = await self._requests.perform(intent, lambda _since: find())
        return str(made["id"])


async def _harmless() -> client.Data | None:
    """Return None: the write may be repeated without harm, so nothing needs to be looked up."""
    return None


def _digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:16]
