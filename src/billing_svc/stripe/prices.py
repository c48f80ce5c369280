"""Every price ever created at Stripe, in Postgres: its plan, meter and catalog version.

A price that somebody made at Stripe is stored too, if it is for a plan's product or for a meter of ours: from then on
it is found by its id as the catalog's prices are.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform.database import select_list, tables
from billing_svc.stripe import catalog_objects, subscriptions

_PRICES = tables.stripe_prices


@dataclass(frozen=True, slots=True)
class SoldPrice:
    """The meaning of a price at Stripe: a plan's price, or a charged meter of the plan.

    `price` is empty for a metered price, and for a base price made by hand; `meter` is empty for every base price.
    """

    price_id: str
    catalog_version: int
    plan: str
    price: str
    meter: str
    stripe_event_name: str | None
    by_hand: bool

    @property
    def is_base(self) -> bool:
        """Say whether it is a base price of its plan."""
        return not self.meter


@dataclass(frozen=True, slots=True)
class CustomPrice:
    """A base price that somebody made at Stripe; the amount is in minor units, None if the price has tiers."""

    price_id: str
    unit_amount: Decimal | None
    currency: str
    interval: str
    interval_count: int


async def sold_prices(conn: AsyncConnection, price_ids: Collection[str]) -> dict[str, SoldPrice]:
    """Return the meaning of prices at Stripe; prices that were never ours are left out."""
    columns = select_list.columns(SoldPrice, _PRICES)
    rows = await conn.execute(sa.select(*columns).where(_PRICES.c.price_id.in_(price_ids)))
    return {row.price_id: SoldPrice(*row) for row in rows}


async def learn(conn: AsyncConnection, found: Sequence[subscriptions.ItemPrice], now: datetime) -> dict[str, SoldPrice]:
    """Return the meaning of the prices of a subscription's items, by id; store those made by hand.

    Left out are prices that are neither for a plan's product nor for a meter of ours.
    """
    sold = await sold_prices(conn, [price.price_id for price in found])
    meters = {price.meter_id: price.price_id for price in found if price.meter_id and price.price_id in sold}
    for meter_id, price_id in meters.items():
        unseen = (_PRICES.c.price_id == price_id, _PRICES.c.stripe_meter_id.is_(None), ~_PRICES.c.by_hand)
        await conn.execute(sa.update(_PRICES).where(*unseen).values(stripe_meter_id=meter_id))
    unknown = [price for price in found if price.price_id not in sold]
    for price in unknown:
        row = await _made_by_hand(conn, price)
        if row is not None:
            await conn.execute(postgresql.insert(_PRICES).values(**row, created_at=now).on_conflict_do_nothing())
    return sold | await sold_prices(conn, [price.price_id for price in unknown]) if unknown else sold


async def _made_by_hand(conn: AsyncConnection, price: subscriptions.ItemPrice) -> dict[str, object] | None:
    """Return the row of a price that is not the catalog's; None if it is none of ours either."""
    if price.is_metered:
        is_of = _PRICES.c.stripe_meter_id == price.meter_id
    else:
        is_of = (_PRICES.c.product_id == price.product_id) & (_PRICES.c.meter == "")
    columns = (_PRICES.c.plan, _PRICES.c.meter, _PRICES.c.pay_as_you_go, _PRICES.c.stripe_event_name)
    newest = sa.select(*columns, _PRICES.c.catalog_version).where(is_of, ~_PRICES.c.by_hand)
    like = (await conn.execute(newest.order_by(_PRICES.c.catalog_version.desc()).limit(1))).mappings().one_or_none()
    if like is None:
        return None
    return {
        **like,
        "price_id": price.price_id,
        "lookup_key": "",
        "product_id": price.product_id,
        "price": "",
        "stripe_meter_id": price.meter_id or None,
        "is_current": False,
        "by_hand": True,
        "unit_amount": price.unit_amount,
        "currency": price.currency,
        "interval": price.interval,
        "interval_count": price.interval_count,
    }


async def custom_prices(conn: AsyncConnection, price_ids: Collection[str | None]) -> dict[str, CustomPrice]:
    """Return base prices that were made by hand, by id; None among the ids is left out. Usually reads nothing."""
    ids = {price_id for price_id in price_ids if price_id is not None}
    if not ids:
        return {}
    columns = select_list.columns(CustomPrice, _PRICES)
    rows = await conn.execute(sa.select(*columns).where(_PRICES.c.price_id.in_(ids), _PRICES.c.by_hand))
    return {row.price_id: CustomPrice(*row) for row in rows}


async def archived(conn: AsyncConnection, price_ids: Collection[str]) -> set[str]:
    """Return those of the catalog's prices that a newer price has replaced: they cannot be sold any more."""
    replaced = (_PRICES.c.price_id.in_(price_ids), ~_PRICES.c.is_current, ~_PRICES.c.by_hand)
    return set((await conn.execute(sa.select(_PRICES.c.price_id).where(*replaced))).scalars())


async def is_product_of_ours(conn: AsyncConnection, product_ids: Collection[str]) -> bool:
    """Say whether one of the products is of a catalog of ours."""
    query = sa.select(_PRICES.c.price_id).where(_PRICES.c.product_id.in_(product_ids), ~_PRICES.c.by_hand).limit(1)
    return (await conn.execute(query)).first() is not None


async def prices_of_version(conn: AsyncConnection, lookup_keys: Collection[str], version: int) -> dict[str, str]:
    """Return the price id of each lookup key in a catalog version; unknown keys are left out.

    A price is stored with the first version that has it, and is valid until a later version has another price.
    """
    rows = await conn.execute(
        sa.select(_PRICES.c.lookup_key, _PRICES.c.price_id)
        .where(_PRICES.c.lookup_key.in_(lookup_keys), _PRICES.c.catalog_version <= version, ~_PRICES.c.by_hand)
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
