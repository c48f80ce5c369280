"""Every price ever created at Stripe, in Postgres: its plan, meter and catalog version."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables
from billing_svc.stripe import catalog_objects

_PRICES = tables.stripe_prices


@dataclass(frozen=True, slots=True)
class SoldPrice:
    """The meaning of a price at Stripe: a plan's price, or a charged meter of the plan (the other field is empty)."""

    price_id: str
    catalog_version: int
    plan: str
    price: str
    meter: str


async def sold_prices(conn: AsyncConnection, price_ids: Collection[str]) -> dict[str, SoldPrice]:
    """Return the meaning of prices at Stripe; prices that were never ours are left out."""
    columns = select_list.columns(SoldPrice, _PRICES)
    rows = await conn.execute(sa.select(*columns).where(_PRICES.c.price_id.in_(price_ids)))
    return {row.price_id: SoldPrice(*row) for row in rows}


async def prices_of_version(conn: AsyncConnection, lookup_keys: Collection[str], version: int) -> dict[str, str]:
    """Return the price id of each lookup key in a catalog version; unknown keys are left out.

    A price is stored with the first version that has it, and is valid until a later version has another price.
    """
    rows = await conn.execute(
        sa.select(_PRICES.c.lookup_key, _PRICES.c.price_id)
        .where(_PRICES.c.lookup_key.in_(lookup_keys), _PRICES.c.catalog_version <= version)
        .order_by(_PRICES.c.catalog_version, _PRICES.c.is_current)
    )
    # The newest price of a key wins.
    return {row.lookup_key: row.price_id for row in rows}


async def current(conn: AsyncConnection, most: int) -> dict[str, str]:
    """Return the price ids of some lookup keys, at most `most`: the newest prices that this service made."""
    query = sa.select(_PRICES.c.lookup_key, _PRICES.c.price_id).where(_PRICES.c.is_current)
    rows = await conn.execute(query.order_by(_PRICES.c.created_at.desc(), _PRICES.c.price_id).limit(most))
    return {row.lookup_key: row.price_id for row in rows}


async def keep(
    conn: AsyncConnection,
    wanted: Sequence[catalog_objects.WantedObject],
    ids: Mapping[str, str],
    version: int,
    now: datetime,
) -> list[str]:
    """Store each price's meaning, permanently; a lookup key means its newest price. Returns the replaced prices."""
    if not wanted:
        return []
    await conn.execute(
        sa.update(_PRICES)
        .where(_PRICES.c.lookup_key.in_(ids), _PRICES.c.price_id.not_in(ids.values()), _PRICES.c.is_current)
        .values(is_current=False)
    )
    rows = [
        {
            "price_id": ids[wanted_price.lookup_key],
            "lookup_key": wanted_price.lookup_key,
            "product_id": wanted_price.product_id,
            "catalog_version": version,
            "plan": wanted_price.plan,
            "price": wanted_price.price,
            "meter": wanted_price.meter,
            "pay_as_you_go": wanted_price.pay_as_you_go,
            "stripe_event_name": wanted_price.lookup_key if wanted_price.is_metered else None,
            "is_current": True,
            "created_at": now,
        }
        for wanted_price in wanted
    ]
    await conn.execute(
        postgresql.insert(_PRICES).on_conflict_do_update(
            index_elements=[_PRICES.c.price_id], set_={"is_current": True}
        ),
        rows,
    )
    replaced = sa.select(_PRICES.c.price_id).where(_PRICES.c.lookup_key.in_(ids), ~_PRICES.c.is_current)
    return list((await conn.execute(replaced.order_by(_PRICES.c.created_at, _PRICES.c.price_id))).scalars())
