"""What a discrepancy or a report of usage is worth, at the price of the plan that charges it."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.catalog import versions
from billing_svc.platform.database import tables
from billing_svc.pricing import rules as pricing_rules
from billing_svc.reconciliation import discrepancies
from billing_svc.usage_export import rules

_PRICES = tables.stripe_prices
_IN_MINOR_UNITS = (discrepancies.DiscrepancyKind.ITEM, discrepancies.DiscrepancyKind.UNINVOICED)


async def discrepancy(
    conn: AsyncConnection, catalogs: versions.CatalogCache, found: discrepancies.UsageDiscrepancy
) -> tuple[int | None, str | None]:
    """Return the money that is charged too little (negative: too much) and its currency; None if it is not known."""
    if found.kind is discrepancies.DiscrepancyKind.UNREADABLE:
        return None, None
    missing = found.ours - found.theirs
    if found.kind in _IN_MINOR_UNITS:
        return missing, (await catalogs.get(conn, found.catalog_version)).currency
    plan, version = found.plan, found.catalog_version
    if found.event_name:
        is_of = (_PRICES.c.stripe_event_name == found.event_name, ~_PRICES.c.by_hand)
        columns = sa.select(_PRICES.c.plan, _PRICES.c.catalog_version)
        sold = (await conn.execute(columns.where(*is_of).order_by(_PRICES.c.catalog_version).limit(1))).one_or_none()
        if sold is not None:
            plan, version = sold
    return await _units(conn, catalogs, version, plan, found.meter, missing)


async def report(
    conn: AsyncConnection, catalogs: versions.CatalogCache, charged: rules.UsageReport
) -> tuple[int | None, str | None]:
    """Return what a report charges and its currency: the amount of its item, else its units at the plan's price."""
    if charged.amount is not None:
        return charged.amount, (await catalogs.get(conn, charged.catalog_version)).currency
    return await _units(conn, catalogs, charged.catalog_version, charged.plan, charged.meter, charged.units)


async def _units(
    conn: AsyncConnection, catalogs: versions.CatalogCache, version: int, plan: str, meter: str, units: int
) -> tuple[int | None, str | None]:
    catalog = await catalogs.get(conn, version)
    price = pricing_rules.metered_price(catalog, plan, meter)
    if price is None:
        return None, None
    return pricing_rules.amount(pricing_rules.unit_price_in_minor_units(catalog, price), units), catalog.currency
