"""The items of a subscription: one for each price, with the period that it is billed for."""

import dataclasses

from stripe_sandbox import errors, forms, periods, rules, state
from stripe_sandbox.context import Context
from stripe_sandbox.state import Json


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """What is subscribed to: a recurring price, and how many; metered ones have no quantity."""

    price: Json
    quantity: int | None


def made(
    context: Context, subscription_id: str, line: Line, anchor: int, period: tuple[int, int | None] | None
) -> Json:
    """Make an item, in the period given or else in the one that its price and the anchor set."""
    start, end = period or periods.current(anchor, line.price["recurring"], context.now)
    item = {
        "id": state.new_id("si"),
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": context.now,
        "current_period_end": end,
        "current_period_start": start,
        "discounts": [],
        "metadata": {},
        "price": line.price["id"],
        "subscription": subscription_id,
        "tax_rates": [],
    }
    return item if line.quantity is None else {**item, "quantity": line.quantity}


def changed(context: Context, subscription: Json, given: list[forms.Params]) -> Json:
    """Change, add and remove items. A price of another interval begins a new period, and with it a new anchor."""
    items = {item["id"]: item for item in subscription["items"]["data"]}
    anchor = subscription["billing_cycle_anchor"]
    for index, change in enumerate(given):
        param = f"items[{index}]"
        if "id" in change and change["id"] not in items:
            raise errors.Refused(f"No such subscription item: '{change['id']}'", param=f"{param}[id]")
        if change.get("deleted"):
            items.pop(change.get("id", ""), None)
            continue
        old = items.get(change.get("id", ""))
        if old is None and "price" not in change:
            raise errors.InvalidParameter("A new item needs a price.", param=f"{param}[price]")
        line = checked_line(context, {"price": (old or {}).get("price"), **change}, param, old)
        new = made(context, subscription["id"], line, anchor, _kept_period(context, subscription, line))
        if old is not None:
            new |= {"id": old["id"], "created": old["created"], "metadata": old["metadata"]}
        new["metadata"] = rules.merged_metadata(new["metadata"], change.get("metadata"))
        items[new["id"]] = new
    prices = [item["price"] for item in items.values()]
    if not prices or len(set(prices)) < len(prices):
        raise errors.Refused("A subscription needs at least one item, and each price once only.", param="items")
    return _realigned(context, subscription, list(items.values()))


def _kept_period(context: Context, subscription: Json, line: Line) -> tuple[int, int] | None:
    """Give the period of the items that are there, if the new line has their interval (or a trial covers all)."""
    present = subscription["items"]["data"][0]
    recurring = context.work.get("price", present["price"])["recurring"]
    same = all(recurring[name] == line.price["recurring"][name] for name in ("interval", "interval_count"))
    if same or subscription["status"] == "trialing":
        return present["current_period_start"], present["current_period_end"]
    return None


def _realigned(context: Context, subscription: Json, items: list[Json]) -> Json:
    """Begin a new period now, for all items, if none of the intervals is the one that was."""
    data = {"items": {**subscription["items"], "data": items}}
    before = subscription["items"]["data"][0]["current_period_end"]
    if any(item["current_period_end"] == before for item in items):
        return data
    for item in items:
        item |= {
            "current_period_start": context.now,
            "current_period_end": next_end(context, item["price"], context.now),
        }
    return {**data, "billing_cycle_anchor": context.now}


def checked_line(context: Context, given: forms.Params, param: str, old: Json | None = None) -> Line:
    """Read a line of a subscription or a checkout. Raises for a price or quantity that cannot be subscribed to."""
    price = context.work.get("price", given["price"], param=f"{param}[price]")
    kept = old is not None and old["price"] == price["id"]
    if not price["active"] and not kept:
        raise errors.Refused(
            "The price specified is inactive. This field only accepts active prices.", param=f"{param}[price]"
        )
    metered = (price["recurring"] or {}).get("usage_type") == "metered"
    if metered and "quantity" in given:
        raise errors.Refused("Quantity cannot be given for a metered price.", param=f"{param}[quantity]")
    if metered:
        return Line(price, None)
    quantity: int = given["quantity"] if "quantity" in given else (old or {"quantity": 1})["quantity"]
    if quantity < 1:
        raise errors.InvalidParameter("Quantity must be at least 1.", param=f"{param}[quantity]")
    return Line(price, quantity)


def next_end(context: Context, price_id: str, start: int) -> int:
    """Give the end of a price's first period from a start."""
    return periods.step(start, context.work.get("price", price_id)["recurring"], 1)
