"""The items of a subscription: one for each price, with the period that it is billed for.

A stored item has private fields. A metered item has `_usage_from` and `_usage_after`: the unix time and the number of
the event up to which usage was billed. Any other item has `_debits`: the amounts charged for its current period.
"""

import dataclasses

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import lines
from stripe_sandbox.meters import usage
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import periods, prorations

ITEMS_MAX = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A price and its quantity; a metered price has no quantity."""

    price: Json
    quantity: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How a change takes effect: prorations count from `at` (unix time); `resets` begins new periods."""

    at: int
    prorates: bool = True
    resets: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Changed:
    """The result of a change: the new items, prorations, and charges for whole periods if new periods began."""

    items: list[Json]
    parts: list[lines.Charge]
    whole: list[lines.Charge]
    anchor: int
    reset: bool


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/subscription_items: the items of a subscription."""
    subscription = context.work.get("subscription", params["subscription"], param="subscription")
    url = f"/v1/subscription_items?subscription={subscription['id']}"
    return rendering.render_inner(context.work, subscription, url, params)


def metered(item: Json) -> bool:
    """Say whether an item is billed by its usage."""
    return "quantity" not in item


def made(context: Context, subscription_id: str, line: Line, period: tuple[int, int]) -> Json:
    """Return a new item, for which nothing was charged yet."""
    item = {
        "id": state.new_id("si"),
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": context.now,
        "current_period_end": period[1],
        "current_period_start": period[0],
        "discounts": [],
        "metadata": {},
        "price": line.price["id"],
        "subscription": subscription_id,
        "tax_rates": [],
    }
    if line.quantity is None:
        return {**item, "_usage_from": context.now, "_usage_after": usage.latest(context.work)}
    return {**item, "quantity": line.quantity, "_debits": []}


def changed(context: Context, subscription: Json, given: list[forms.Params], change: Change) -> Changed:
    """Change, add and remove items. If no item keeps its interval, new periods begin, with a new anchor."""
    old = {item["id"]: item for item in subscription["items"]["data"]}
    new = _edited(context, subscription, old, given)
    unbilled = subscription["status"] in {"trialing", "paused"}
    rhythms = [_recurring(context, item) for item in old.values()]
    kept = any(periods.same(_recurring(context, item), rhythm) for item in new.values() for rhythm in rhythms)
    reset = not unbilled and (change.resets or not kept)
    anchor = context.now if reset else subscription["billing_cycle_anchor"]
    parts: list[lines.Charge] = []
    if not unbilled:
        parts += _closed(context, subscription, old, new, change, reset=reset)
    items, whole = [], []
    reported = usage.latest(context.work)
    for edited in new.values():
        item = edited
        if reset:
            item, charge = begun(context, subscription, edited, next_period(context, edited, anchor), reported)
            whole += [charge] if charge else []
        elif not (unbilled or metered(edited)) and change.prorates and _differs(old.get(edited["id"]), edited):
            charge = prorations.remaining(context.work, subscription, edited, anchor, change.at)
            parts.append(charge)
            item = {**edited, "_debits": [prorations.debit(charge.amount, charge.start, charge.end)]}
        items.append(item)
    return Changed(items, [charge for charge in parts if charge.amount], whole, anchor, reset)


def _closed(
    context: Context, subscription: Json, old: dict[str, Json], new: dict[str, Json], change: Change, *, reset: bool
) -> list[lines.Charge]:
    """Return the credits for items that end or change, and the charges for usage that is due now."""
    parts: list[lines.Charge] = []
    for item in old.values():
        after = new.get(item["id"])
        removed = after is None or after["price"] != item["price"]
        if metered(item):
            # A removed item's usage is charged only with prorations, a remaining item's if its period ends early.
            if (removed and change.prorates) or (reset and not removed):
                parts.append(lines.used_until_now(context.work, subscription, item, context.now))
        elif change.prorates and (reset or _differs(item, after)):
            parts += prorations.credits_for(context.work, subscription, item, change.at)
    return parts


def _differs(one: Json | None, other: Json | None) -> bool:
    if one is None or other is None:
        return True
    return any(one.get(name) != other.get(name) for name in ("price", "quantity"))


def begun(
    context: Context, subscription: Json, item: Json, period: tuple[int, int], after: int = 0
) -> tuple[Json, lines.Charge | None]:
    """Return the item in its new period, and the charge for the period; None for a metered item.

    `after` is the number of the last billed usage event, if the last period ended early.
    """
    item = {**item, "current_period_start": period[0], "current_period_end": period[1]}
    if metered(item):
        return {**item, "_usage_from": period[0], "_usage_after": after}, None
    charge = lines.in_advance(context.work, subscription, item)
    return {**item, "_debits": [prorations.debit(charge.amount, *period)]}, charge


def next_period(context: Context, item: Json, anchor: int) -> tuple[int, int]:
    """Return the start and end of the period that begins now."""
    return context.now, periods.current(anchor, _recurring(context, item), context.now)[1]


def period_at(context: Context, item: Json, anchor: int) -> tuple[int, int]:
    """Return the start and end of the item's period that contains the present, as the anchor gives it."""
    return periods.current(anchor, _recurring(context, item), context.now)


def _recurring(context: Context, item: Json) -> Json:
    recurring: Json = context.work.get("price", item["price"])["recurring"]
    return recurring


def _edited(context: Context, subscription: Json, old: dict[str, Json], given: list[forms.Params]) -> dict[str, Json]:
    """Return the items after the change; a new item gets the period of items with the same interval."""
    items = dict(old)
    for index, change in enumerate(given):
        param = f"items[{index}]"
        if "id" in change and change["id"] not in items:
            raise errors.Refused(f"No such subscription item: '{change['id']}'", param=f"{param}[id]")
        if change.get("deleted"):
            items.pop(change.get("id", ""), None)
            continue
        before = old.get(change.get("id", ""))
        if before is None and "price" not in change:
            raise errors.InvalidParameter("A new item needs a price.", param=f"{param}[price]")
        line = checked_line(context, {"price": (before or {}).get("price"), **change}, param, before)
        item = made(context, subscription["id"], line, _fitting_period(context, subscription, line))
        if before is not None:
            item |= {"id": before["id"], "created": before["created"], "metadata": before["metadata"]}
            # The debits stay, because later credits need them; the start of the unbilled usage stays with the same
            # price.
            kept = ("_debits",) if before["price"] != line.price["id"] else ("_debits", "_usage_from", "_usage_after")
            item |= {name: before[name] for name in kept if name in before and name in item}
        item["metadata"] = rules.merged_metadata(item["metadata"], change.get("metadata"))
        items[item["id"]] = item
    prices = [item["price"] for item in items.values()]
    if not prices or len(set(prices)) < len(prices) or len(prices) > ITEMS_MAX:
        raise errors.Refused(
            f"A subscription needs at least one item, at most {ITEMS_MAX}, and each price once only.", param="items"
        )
    return items


def _fitting_period(context: Context, subscription: Json, line: Line) -> tuple[int, int]:
    """Return the period of an item with the same interval, or of the trial; else the period that the anchor gives."""
    for item in subscription["items"]["data"]:
        if subscription["status"] == "trialing" or periods.same(_recurring(context, item), line.price["recurring"]):
            return item["current_period_start"], item["current_period_end"]
    return periods.current(subscription["billing_cycle_anchor"], line.price["recurring"], context.now)


def checked_line(context: Context, given: forms.Params, param: str, old: Json | None = None) -> Line:
    """Return a line of a subscription or checkout. Raises Refused or InvalidParameter for a wrong price or quantity."""
    price = context.work.get("price", given["price"], param=f"{param}[price]")
    kept = old is not None and old["price"] == price["id"]
    if not price["active"] and not kept:
        raise errors.Refused(
            "The price specified is inactive. This field only accepts active prices.", param=f"{param}[price]"
        )
    by_usage = (price["recurring"] or {}).get("usage_type") == "metered"
    if by_usage and "quantity" in given:
        raise errors.Refused("Quantity cannot be given for a metered price.", param=f"{param}[quantity]")
    if by_usage:
        return Line(price, None)
    quantity: int = given["quantity"] if "quantity" in given else (old or {}).get("quantity", 1)
    if quantity < 0:
        raise errors.InvalidParameter("Invalid non-negative integer.", param=f"{param}[quantity]")
    return Line(price, quantity)
