"""Finds subscriptions that pay for a plan of ours and belong to no account, such as a payment link's sale.

They are read loosely: what cannot be read in an object of another product's customer does not concern us.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from billing_svc.platform import errors
from billing_svc.platform.database import tables
from billing_svc.reconciliation import discrepancies
from billing_svc.stripe import client, parse, subscriptions

KIND = "stranger"
_PRICES = tables.stripe_prices


async def find(conn: AsyncConnection, foreign: Sequence[client.Data]) -> list[discrepancies.ObjectDiscrepancy]:
    """Return those of the subscriptions of customers that we do not know that have an item of ours and live."""
    living = [data for data in foreign if parse.nested(data, "status") not in subscriptions.OVER]
    by_product, by_price = await _plans(conn)
    found = []
    for data in living:
        sold = [
            (_text(item, "price", "id"), parse.optional_id(parse.nested(item, "price", "product")))
            for item in _items(data)
        ]
        plans = {by_price.get(price or "") or by_product.get(product or "") for price, product in sold} - {None}
        if not plans:
            continue
        customer_id = parse.optional_id(parse.nested(data, "customer")) or ""
        named = ", ".join(sorted(plan for plan in plans if plan))
        detail = f"customer {customer_id} pays for a plan of ours ({named}) and belongs to no account"
        found.append(discrepancies.ObjectDiscrepancy(KIND, "", _text(data, "id") or "", detail, *_money(data)))
    return found


async def _plans(conn: AsyncConnection) -> tuple[dict[str, str], dict[str, str]]:
    """Return the plan of each product of a catalog's base prices, and of each price, that is or was ours."""
    query = sa.select(_PRICES.c.product_id, _PRICES.c.price_id, _PRICES.c.plan, _PRICES.c.meter)
    rows = (await conn.execute(query.order_by(_PRICES.c.catalog_version))).all()
    return {row.product_id: row.plan for row in rows if not row.meter}, {row.price_id: row.plan for row in rows}


def _items(data: client.Data) -> list[object]:
    items = parse.nested(data, "items", "data")
    return items if isinstance(items, list) else []


def _text(data: object, *path: str) -> str | None:
    return parse.optional_text(parse.nested(data, *path))


def _money(data: client.Data) -> tuple[int | None, str | None]:
    """Return what the subscription's items cost for each of its periods, without metered usage; None if unreadable."""
    try:
        items = subscriptions.from_stripe(data).items
    except errors.StripeObjectUnreadable:
        return None, None
    fixed = [item for item in items if not item.price.is_metered]
    currency = next((item.price.currency for item in fixed if item.price.currency), None)
    amounts = [item.price.unit_amount for item in fixed]
    if currency is None or any(amount is None for amount in amounts):
        return None, None
    return int(sum(item.quantity * amount for item, amount in zip(fixed, amounts, strict=True) if amount)), currency
