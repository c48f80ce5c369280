"""Acts of a person in the dashboard: the items of a subscription, and their prices."""

from tests.faults.walk.walker import Act, Data, Walker

ITEMS = "/v1/subscription_items"


async def _price(walker: Walker, product: str, **more: object) -> str | None:
    """Make a price by hand, of a month unless said otherwise."""
    amount = walker.draw.choice((300, 900, 1500))
    params = {"product": product, "currency": "usd", "unit_amount": amount, "recurring[interval]": "month", **more}
    return (await walker.stripe("POST", "/v1/prices", **params)).get("id")


async def _metered(walker: Walker, product: str, meter: str) -> str | None:
    amount = walker.draw.choice((4, 5, 9))
    fields = {"recurring[usage_type]": "metered", "recurring[meter]": meter, "unit_amount": amount}
    return await _price(walker, product, **fields)


async def _foreign_product(walker: Walker) -> str:
    return str((await walker.stripe("POST", "/v1/products", name="Another team's product"))["id"])


async def _add(walker: Walker, price: str | None, **more: object) -> None:
    found = await walker.a_subscription()
    if found is not None and price is not None:
        behavior = walker.draw.choice(("none", "create_prorations", "always_invoice"))
        await walker.stripe("POST", ITEMS, subscription=found["id"], price=price, proration_behavior=behavior, **more)


async def _replace(walker: Walker, items: list[Data], price: str | None) -> None:
    item = walker.one_of(items)
    if item is not None and price is not None:
        await walker.stripe("POST", f"{ITEMS}/{item['id']}", price=price, proration_behavior="none")


async def _remove(walker: Walker, items: list[Data]) -> None:
    item = walker.one_of(items)
    if item is not None:
        await walker.stripe("DELETE", f"{ITEMS}/{item['id']}")


async def _bases(walker: Walker) -> list[Data]:
    found = await walker.a_subscription()
    return [] if found is None else walker.shop.base_items(found)


async def _metered_items(walker: Walker) -> list[Data]:
    found = await walker.a_subscription()
    return [] if found is None else walker.shop.metered_items(found)


async def add_another_plan(walker: Walker) -> None:
    """Add a plan's item at its catalog price."""
    key = walker.draw.choice(("small_monthly", "big_monthly", "team_monthly", "tried_monthly"))
    await _add(walker, walker.shop.prices[key])


async def add_a_plan_at_a_handmade_price(walker: Walker) -> None:
    """Add a plan's item at a negotiated price."""
    await _add(walker, await _price(walker, walker.shop.product(walker.draw.choice(("small", "big")))))


async def add_another_products_item(walker: Walker) -> None:
    """Add an item of another product."""
    await _add(walker, await _price(walker, await _foreign_product(walker)))


async def add_another_products_meter(walker: Walker) -> None:
    """Add a metered item of another product, on a meter of its own."""
    meter = await walker.stripe(
        "POST",
        "/v1/billing/meters",
        display_name="Other",
        event_name=f"other_{walker.unique()}",
        **{
            "default_aggregation[formula]": "sum",
            "customer_mapping[type]": "by_id",
            "customer_mapping[event_payload_key]": "stripe_customer_id",
            "value_settings[event_payload_key]": "value",
        },
    )
    await _add(walker, await _metered(walker, await _foreign_product(walker), meter["id"]))


async def add_another_plans_meter(walker: Walker) -> None:
    """Add the metered item of some plan of ours."""
    walker.may_bill_twice = True
    await _add(walker, walker.shop.metered_of_plan[walker.draw.choice(("small", "big", "team"))])


async def add_a_meter_twice(walker: Walker) -> None:
    """Add an item that bills a meter of ours at a handmade price."""
    walker.may_bill_twice = True
    plan = walker.draw.choice(("small", "big"))
    await _add(walker, await _metered(walker, walker.shop.product(plan), walker.shop.meter_of_plan[plan]))


async def replace_the_plan(walker: Walker) -> None:
    """Give the plan's item the price of another plan."""
    key = walker.draw.choice(("small_monthly", "big_monthly", "team_monthly"))
    await _replace(walker, await _bases(walker), walker.shop.prices[key])


async def negotiate_the_price(walker: Walker) -> None:
    """Give the plan's item a handmade price of its own product."""
    bases = await _bases(walker)
    if bases:
        await _replace(walker, bases[-1:], await _price(walker, bases[-1]["price"]["product"]))


async def sell_something_else(walker: Walker) -> None:
    """Give the plan's item the price of another product."""
    await _replace(walker, await _bases(walker), await _price(walker, await _foreign_product(walker)))


async def negotiate_the_overage(walker: Walker) -> None:
    """Replace the metered item by an item of the same meter at a handmade price."""
    items = await _metered_items(walker)
    if items:
        price = items[0]["price"]
        await _replace(walker, items[:1], await _metered(walker, price["product"], price["recurring"]["meter"]))


async def remove_the_plan(walker: Walker) -> None:
    """Remove the plan's item."""
    await _remove(walker, await _bases(walker))


async def remove_the_meter(walker: Walker) -> None:
    """Remove the metered item."""
    await _remove(walker, await _metered_items(walker))


async def remove_a_stranger(walker: Walker) -> None:
    """Remove an item that is not the plan's."""
    found = await walker.a_subscription()
    if found is not None:
        ours = {one["id"] for one in walker.shop.base_items(found)}
        await _remove(walker, [one for one in found["items"]["data"] if one["id"] not in ours])


async def set_the_quantity(walker: Walker) -> None:
    """Set the plan's quantity: none, one or several."""
    item = walker.one_of(await _bases(walker))
    if item is not None:
        quantity = walker.draw.choice((0, 1, 2, 5))
        await walker.stripe("POST", f"{ITEMS}/{item['id']}", quantity=quantity)


async def archive_a_price(walker: Walker) -> None:
    """Archive a price of the catalog, or take it into use again."""
    key = walker.draw.choice(("small_monthly", "year_yearly", "big_monthly"))
    active = walker.draw.choice(("true", "false"))
    await walker.stripe("POST", f"/v1/prices/{walker.shop.prices[key]}", active=active)


ACTS: tuple[tuple[Act, int], ...] = (
    (add_another_plan, 1),
    (add_a_plan_at_a_handmade_price, 1),
    (add_another_products_item, 1),
    (add_another_products_meter, 1),
    (add_another_plans_meter, 1),
    (add_a_meter_twice, 1),
    (replace_the_plan, 2),
    (negotiate_the_price, 2),
    (sell_something_else, 1),
    (negotiate_the_overage, 1),
    (remove_the_plan, 1),
    (remove_the_meter, 1),
    (remove_a_stranger, 2),
    (set_the_quantity, 2),
    (archive_a_price, 1),
)
