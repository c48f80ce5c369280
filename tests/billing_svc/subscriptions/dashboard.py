"""What a person does at Stripe, beside the service."""

from collections.abc import Mapping
from typing import Any

from billing.v1 import subscription_pb2
from billing_svc.catalog import versions
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.stripe import subscriptions
from billing_svc.subscriptions.records import apply_subscription
from tests.billing_svc.sandboxed import World


async def price_of(world: World, lookup_key: str) -> str:
    """Return the id of a price of the catalog."""
    prices = tables.stripe_prices.c
    (row,) = await world.rows(tables.stripe_prices, prices.lookup_key == lookup_key, prices.is_current)
    return str(row.price_id)


async def make_price(world: World, product: str, amount: int, **more: object) -> str:
    """Make a price by hand; `amount` is in minor units."""
    params = {"product": product, "currency": "usd", "unit_amount": amount, "recurring[interval]": "month", **more}
    return str((await world.sandbox.call("POST", "/v1/prices", **params))["id"])


async def make_product(world: World, name: str) -> str:
    """Make a product that is no plan of ours."""
    return str((await world.sandbox.call("POST", "/v1/products", name=name))["id"])


async def items_of(world: World, subscription_id: str) -> list[dict[str, Any]]:
    found = await world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}")
    items: list[dict[str, Any]] = found["items"]["data"]
    return items


async def item_with(world: World, subscription_id: str, price_id: str) -> str:
    """Return the item that has a price."""
    items = await items_of(world, subscription_id)
    return next(str(item["id"]) for item in items if item["price"]["id"] == price_id)


async def replace_item(world: World, subscription_id: str, before: str, after: str) -> None:
    """Give the item of a price another price."""
    item = await item_with(world, subscription_id, before)
    fields = {"items[0][id]": item, "items[0][price]": after, "proration_behavior": "none"}
    await world.sandbox.call("POST", f"/v1/subscriptions/{subscription_id}", **fields)


async def add_item(world: World, subscription_id: str, price_id: str) -> None:
    fields = {"items[0][price]": price_id, "proration_behavior": "none"}
    await world.sandbox.call("POST", f"/v1/subscriptions/{subscription_id}", **fields)


async def remove_item(world: World, subscription_id: str, price_id: str) -> None:
    item = await item_with(world, subscription_id, price_id)
    fields = {"items[0][id]": item, "items[0][deleted]": "true", "proration_behavior": "none"}
    await world.sandbox.call("POST", f"/v1/subscriptions/{subscription_id}", **fields)


async def subscribe(world: World, *price_ids: str, **more: object) -> str:
    """Make a subscription of the only customer."""
    (customer,) = await world.sandbox.all("/v1/customers")
    items = {f"items[{number}][price]": price_id for number, price_id in enumerate(price_ids)}
    made = await world.sandbox.call("POST", "/v1/subscriptions", customer=customer["id"], **items, **more)
    return str(made["id"])


async def apply(world: World, data: Mapping[str, Any], account_id: str = "org_1") -> subscription_pb2.Subscription:
    """Apply a state that the sandbox cannot produce, as if it had been fetched."""
    fetched = subscriptions.from_stripe(data)
    now = world.billing.clock.now()
    origin = audit_store.Origin("stripe:evt")
    await world.billing.transactions.run(
        lambda conn: apply_subscription.apply(conn, versions.CatalogCache(), fetched, origin, now)
    )
    return await world.subscription(account_id)
