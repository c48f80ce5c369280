"""Every price ever made at Stripe, in Postgres: which plan, meter and catalog version it stands for."""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables

_PRICES = tables.stripe_prices


@dataclass(frozen=True, slots=True)
class SoldPrice:
    """What a price at Stripe stands for: a plan's price, or a charged meter of it (the other one is empty)."""

    price_id: str
    catalog_version: int
    plan: str
    price: str
    meter: str


async def sold_prices(conn: AsyncConnection, price_ids: Collection[str]) -> dict[str, SoldPrice]:
    """Return what prices at Stripe stand for; those that never were ours are missing."""
    columns = select_list.columns(SoldPrice, _PRICES)
    rows = await conn.execute(sa.select(*columns).where(_PRICES.c.price_id.in_(price_ids)))
    return {row.price_id: SoldPrice(*row) for row in rows}


async def prices_of_version(conn: AsyncConnection, lookup_keys: Collection[str], version: int) -> dict[str, str]:
    """Return the price id that each lookup key stood for in a catalog version; unknown keys are missing.

    A price comes with the version that first has it, and holds until a later version brings another.
    """
    rows = await conn.execute(
        sa.select(_PRICES.c.lookup_key, _PRICES.c.price_id)
        .where(_PRICES.c.lookup_key.in_(lookup_keys), _PRICES.c.catalog_version <= version)
        .order_by(_PRICES.c.catalog_version, _PRICES.c.is_current)
    )
    # The last one of a key stays.
    return {row.lookup_key: row.price_id for row in rows}
