"""Bringing the catalog to Stripe: showing the differences, and removing them.

Idempotent and interruptible: each object is looked for before it is made, and made under a stored intent. The version
is published together with its prices once they are at Stripe, so that nothing is sold before it exists; what it
replaced is switched off after that, so that nothing is sold that is off.
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

# One catalog is published at a time: the newest version and the current prices must be of the same one. Any number
# that nothing else in the database takes for an advisory lock.
PUBLISH_LOCK_KEY = 0x63_61_74_61  # "cata"
# What belongs to no account.
_NO_ACCOUNT = ""
# The intent that made a catalog's configuration also remembers its id, which never changes.
_PORTAL_PURPOSE = "portal_configuration:"

_REQUESTS = tables.stripe_requests


@dataclass(frozen=True, slots=True)
class Applied:
    """A catalog in force: its version, and the ids at Stripe of its prices and meters by lookup key."""

    version: int
    prices: Mapping[str, str]
    meters: Mapping[str, str]
    portal_configuration: str


async def compare(
    stripe: client.Stripe, catalog: model.Catalog
) -> tuple[catalog_objects.Found, list[catalog_objects.Difference]]:
    """Return what is at Stripe of a catalog, and what differs; changes nothing. Raises StripeUnavailable."""
    wanted = catalog_objects.wanted_prices(catalog)
    meters: dict[str, client.Data] = {}
    for meter in await stripe.all_meters():
        # Several may have had the name; one that is active has it now.
        if meter["status"] == "active" or meter["event_name"] not in meters:
            meters[meter["event_name"]] = meter
    portals = [one for one in await stripe.portal_configurations() if one["metadata"].get("catalog") == catalog.name]
    found = catalog_objects.Found(
        products={one["id"]: one for one in await stripe.products(sorted({one.product_id for one in wanted}))},
        meters=meters,
        prices={price["lookup_key"]: price for price in await stripe.prices([one.lookup_key for one in wanted])},
        # The first one made, wherever a race made two.
        portal=min(portals, key=lambda one: (one["created"], one["id"]), default=None),
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
    """Make Stripe and the database have this catalog. Each thing that is made or changed is reported.

    Raises StripeUnavailable or StripeRefused; what was made by then is found again by the next attempt. Raises
    CatalogError, before anything is made, if it cannot follow the versions that there are.
    """
    await database.read(lambda conn: versions.refuse_other_kinds(conn, catalog))
    found, differences = await compare(stripe, catalog)
    sync = _Sync(stripe, intents.Requests(database, stripe, now), catalog, found)
    for one in differences:
        await sync.remove(one)
        report(f"{one.kind} {one.key}: {one.detail}")
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
    meters = {one.lookup_key: sync.meters[one.lookup_key] for one in wanted if one.is_metered}
    return Applied(version, sync.prices, meters, sync.portal)


async def portal_configuration(conn: AsyncConnection) -> str | None:
    """Return the id of the newest catalog's portal configuration; None before it was ever made."""
    newest = sa.select(tables.catalog_versions.c.name).order_by(tables.catalog_versions.c.version.desc()).limit(1)
    purpose = sa.func.concat(_PORTAL_PURPOSE, newest.scalar_subquery())
    query = sa.select(_REQUESTS.c.result["id"].astext).where(
        _REQUESTS.c.account_id == _NO_ACCOUNT, _REQUESTS.c.purpose == purpose, _REQUESTS.c.state == "done"
    )
    return (await conn.execute(query)).scalar_one_or_none()


class _Sync:
    """Makes at Stripe what is missing, and mends what differs."""

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

    async def remove(self, one: catalog_objects.Difference) -> None:
        """Remove a difference; done by another process meanwhile, it stays done."""
        match one.operation:
            case "products.create":
                await self._make(f"product:{one.key}", one.operation, one.params, lambda: self._product(one.key))
            case "billing.meters.create":
                self.meters[one.key] = await self._make(
                    f"meter:{one.key}", one.operation, one.params, lambda: self._meter(one.key)
                )
            case "prices.create":
                self.prices[one.key] = await self._price(one)
            case "billing_portal.configurations.create":
                self.portal = await self._make(
                    f"{_PORTAL_PURPOSE}{one.key}", one.operation, one.params, self._portal_configuration
                )
            case _:
                await self._change(one)

    async def retire(self, price_id: str) -> None:
        """Let nobody buy a price any more; who has it keeps it. Done once for each, and not again."""
        # One that is not at Stripe any more cannot be bought either.
        with contextlib.suppress(client.NotAtStripe):
            await self._make(f"retire:{price_id}", "prices.deactivate", {"price": price_id}, _harmless)

    async def _price(self, one: catalog_objects.Difference) -> str:
        wanted = one.wanted
        if wanted is None:
            raise ValueError("a price that nobody wants")
        meter_id = self.meters.get(one.key)
        params = wanted.params(meter_id)

        async def find() -> client.Data | None:
            holders = await self._stripe.prices([one.key])
            return next((price for price in holders if wanted.is_met_by(price, meter_id)), None)

        # Going back to an earlier amount is a new price again, so what it replaces is part of the purpose.
        purpose = f"price:{one.key}:{'' if one.old is None else one.old['id']}:{_digest(params)}"
        return await self._make(purpose, one.operation, params, find)

    async def _change(self, one: catalog_objects.Difference) -> None:
        # The same change is needed again after somebody has undone it.
        since = "" if one.old is None else one.old.get("updated", "")
        purpose = f"change:{one.kind}:{one.key}:{since}:{_digest(one.params)}"
        await self._make(purpose, one.operation, one.params, _harmless)

    async def _product(self, product_id: str) -> client.Data | None:
        return next(iter(await self._stripe.products([product_id])), None)

    async def _meter(self, event_name: str) -> client.Data | None:
        meters = await self._stripe.meters()
        return next((one for one in meters if one["event_name"] == event_name), None)

    async def _portal_configuration(self) -> client.Data | None:
        found = await self._stripe.portal_configurations()
        return next((one for one in found if one["metadata"].get("catalog") == self._catalog.name), None)

    async def _make(
        self, purpose: str, operation: str, params: Mapping[str, Any], find: Callable[[], Awaitable[client.Data | None]]
    ) -> str:
        """Make one object for its purpose. `find` sees it however long ago it was made."""
        intent = intents.Intent(_NO_ACCOUNT, purpose, operation, params)
        made = await self._requests.perform(intent, lambda _since: find())
        return str(made["id"])


async def _harmless() -> client.Data | None:
    """Find nothing: doing it twice does no harm."""
    return None


def _digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:16]
