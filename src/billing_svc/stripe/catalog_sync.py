"""Bringing the catalog to Stripe: products for plans and charged meters, a price for each charge.

Idempotent and interruptible: each object is looked for before it is made, and made under a stored intent. The version
is published together with its prices once they are at Stripe, so that nothing is sold before it exists; what it
replaced is switched off after that, so that nothing is sold that is off.
"""

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc import clock
from billing_svc.audit import store as audit_store
from billing_svc.catalog import model, money, versions
from billing_svc.database import tables, transactions
from billing_svc.stripe import client, requests

# One catalog is published at a time: the newest version and the current prices must be of the same one. Any number
# that nothing else in the database takes for an advisory lock.
PUBLISH_LOCK_KEY = 0x63_61_74_61  # "cata"
# What belongs to no account.
_NO_ACCOUNT = ""

_PRICES = tables.stripe_prices


@dataclass(frozen=True, slots=True)
class Wanted:
    """A price that the catalog asks for. A metered one has a meter, whose event name is the lookup key."""

    lookup_key: str
    product_id: str
    product_name: str
    plan: str
    price: str
    meter: str
    pay_as_you_go: bool
    unit_amount: Decimal
    interval: str

    @property
    def is_metered(self) -> bool:
        """Say whether it multiplies reported usage."""
        return bool(self.meter)


def wanted_prices(catalog: model.Catalog) -> list[Wanted]:
    """Return all prices of a catalog, in its order. Amounts are in minor units."""
    wanted = []
    for plan in catalog.plans.values():
        product_id = f"{catalog.name}_{plan.key}"
        for key, price in plan.prices.items():
            lookup_key, amount = plan.base_lookup_key(key), Decimal(catalog.minor_units(price))
            wanted.append(
                Wanted(lookup_key, product_id, plan.name, plan.key, key, "", False, amount, price.interval)  # noqa: FBT003
            )
        for metered in plan.metered_prices:
            unit = catalog.meters[metered.meter].display_name or metered.meter
            amount = money.in_minor_units(metered.limit.unit_price_exact, catalog.currency)
            wanted.append(
                Wanted(
                    metered.lookup_key,
                    metered.lookup_key,
                    f"{plan.name}: {unit} beyond included",
                    plan.key,
                    "",
                    metered.meter,
                    metered.pay_as_you_go,
                    amount,
                    "month",
                )
            )
    return wanted


async def apply(
    database: transactions.Transactions,
    stripe: client.Stripe,
    catalog: model.Catalog,
    actor: str,
    now: datetime,
    report: Callable[[str], None],
) -> int:
    """Make Stripe and the database have this catalog; returns its version. Each thing that is made is reported.

    Raises StripeUnavailable or StripeRefused; what was made by then is found again by the next attempt. Raises
    CatalogError, before anything is made, if it cannot follow the versions that there are.
    """
    await database.read(lambda conn: versions.refuse_other_kinds(conn, catalog))
    sync = _Sync(database, stripe, requests.Requests(database, stripe, clock.Clock()), catalog.currency, report)
    wanted = wanted_prices(catalog)
    ids = await sync.prices(wanted)

    async def publish(conn: AsyncConnection) -> tuple[int, bool, list[str]]:
        await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(PUBLISH_LOCK_KEY)))
        version, is_new = await versions.publish(conn, catalog, actor, now)
        replaced = await _keep_prices(conn, wanted, ids, version, now)
        if is_new:
            changes = {"catalog": catalog.name, "version": version}
            await audit_store.append(conn, audit_store.Origin(actor), _NO_ACCOUNT, "catalog.published", changes, now)
        return version, is_new, replaced

    version, is_new, replaced = await database.run(publish)
    for price_id in replaced:
        await sync.retire(price_id)
    report(f"catalog {catalog.name}: version {version}{'' if is_new else ' is in force already'}")
    return version


class _Sync:
    """Makes what is missing at Stripe."""

    def __init__(
        self,
        database: transactions.Transactions,
        stripe: client.Stripe,
        writes: requests.Requests,
        currency: str,
        report: Callable[[str], None],
    ) -> None:
        self._database = database
        self._stripe = stripe
        self._requests = writes
        self._currency = currency
        self._report = report

    async def prices(self, wanted: list[Wanted]) -> dict[str, str]:
        """Return the id of the price of each lookup key; a changed price is a new one that takes the key over."""
        found = {price["lookup_key"]: price for price in await self._stripe.prices([one.lookup_key for one in wanted])}
        meters = {meter["event_name"]: meter["id"] for meter in await self._stripe.meters()}
        ids = {}
        for one in wanted:
            await self._product(one)
            meter_id = meters.get(one.lookup_key) or await self._meter(one) if one.is_metered else None
            params = _price_params(one, self._currency, meter_id)
            old = found.get(one.lookup_key)
            if old is not None and _is_same(old, params):
                ids[one.lookup_key] = old["id"]
                continue
            ids[one.lookup_key] = await self._price(one, params, None if old is None else old["id"])
        return ids

    async def _product(self, one: Wanted) -> None:
        async def find() -> client.Data | None:
            try:
                return await self._stripe.product(one.product_id)
            except client.NotAtStripe:
                return None

        if await find() is None:
            params = {"id": one.product_id, "name": one.product_name, "metadata": {"plan": one.plan}}
            await self._make(f"product:{one.product_id}", "products.create", params, find)
            self._report(f"product {one.product_id}")

    async def _meter(self, one: Wanted) -> str:
        async def find() -> client.Data | None:
            return next((meter for meter in await self._stripe.meters() if meter["event_name"] == one.lookup_key), None)

        params = {
            "display_name": one.product_name,
            "event_name": one.lookup_key,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
        meter_id = await self._make(f"meter:{one.lookup_key}", "billing.meters.create", params, find)
        self._report(f"meter {one.lookup_key}")
        return meter_id

    async def _price(self, one: Wanted, params: Mapping[str, Any], old_id: str | None) -> str:
        async def find() -> client.Data | None:
            holders = await self._stripe.prices([one.lookup_key])
            return next((price for price in holders if _is_same(price, params)), None)

        # Going back to an earlier amount is a new price again, so what it replaces is part of the purpose.
        content = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:16]
        purpose = f"price:{one.lookup_key}:{old_id or ''}:{content}"
        price_id = await self._make(purpose, "prices.create", params, find)
        self._report(f"price {one.lookup_key}{' (changed)' if old_id else ''}")
        return price_id

    async def retire(self, price_id: str) -> None:
        """Let nobody buy a price any more; who has it keeps it. Done once for each, and not again."""

        async def find() -> client.Data | None:
            return None  # doing it twice does no harm

        # One that is not at Stripe any more cannot be bought either.
        with contextlib.suppress(client.NotAtStripe):
            await self._make(f"retire:{price_id}", "prices.deactivate", {"price": price_id}, find)

    async def _make(
        self, purpose: str, operation: str, params: Mapping[str, Any], find: Callable[[], Awaitable[client.Data | None]]
    ) -> str:
        """Make one object for its purpose. `find` sees it however long ago it was made."""
        intent = requests.Intent(_NO_ACCOUNT, purpose, operation, params)
        made = await self._requests.perform(intent, lambda _since: find())
        return str(made["id"])


def _price_params(one: Wanted, currency: str, meter_id: str | None) -> dict[str, Any]:
    recurring = {"interval": one.interval}
    if meter_id is not None:
        recurring |= {"usage_type": "metered", "meter": meter_id}
    return {
        "product": one.product_id,
        "currency": currency,
        "unit_amount_decimal": f"{one.unit_amount:f}",
        "recurring": recurring,
        "lookup_key": one.lookup_key,
        "transfer_lookup_key": True,
        "metadata": {"plan": one.plan, "meter": one.meter},
    }


def _is_same(price: client.Data, params: Mapping[str, Any]) -> bool:
    """Say whether a price at Stripe charges what is wanted; somebody may have given our lookup key to any other."""
    recurring, amount = price.get("recurring"), price.get("unit_amount_decimal")
    return (
        bool(price["active"])
        and price["product"] == params["product"]
        and price["currency"] == params["currency"]
        and amount is not None
        and Decimal(amount) == Decimal(params["unit_amount_decimal"])
        and recurring is not None
        and (recurring["interval"], recurring.get("interval_count", 1)) == (params["recurring"]["interval"], 1)
        and recurring.get("meter") == params["recurring"].get("meter")
    )


async def _keep_prices(
    conn: AsyncConnection, wanted: list[Wanted], ids: Mapping[str, str], version: int, now: datetime
) -> list[str]:
    """Remember what each price stands for, for ever; a lookup key stands for its newest one. Returns the others."""
    if not wanted:
        return []
    await conn.execute(
        sa.update(_PRICES)
        .where(_PRICES.c.lookup_key.in_(ids), _PRICES.c.price_id.not_in(ids.values()), _PRICES.c.is_current)
        .values(is_current=False)
    )
    rows = [
        {
            "price_id": ids[one.lookup_key],
            "lookup_key": one.lookup_key,
            "product_id": one.product_id,
            "catalog_version": version,
            "plan": one.plan,
            "price": one.price,
            "meter": one.meter,
            "pay_as_you_go": one.pay_as_you_go,
            "stripe_event_name": one.lookup_key if one.is_metered else None,
            "is_current": True,
            "created_at": now,
        }
        for one in wanted
    ]
    await conn.execute(
        postgresql.insert(_PRICES).on_conflict_do_update(
            index_elements=[_PRICES.c.price_id], set_={"is_current": True}
        ),
        rows,
    )
    replaced = sa.select(_PRICES.c.price_id).where(_PRICES.c.lookup_key.in_(ids), ~_PRICES.c.is_current)
    return list((await conn.execute(replaced.order_by(_PRICES.c.created_at, _PRICES.c.price_id))).scalars())
