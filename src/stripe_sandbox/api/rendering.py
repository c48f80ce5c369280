"""Turns a stored object into the form that an answer shows.

Stored objects contain only the ids of other objects. An answer shows some of these objects in full (a subscription
item's price), most of them only if `expand[]` names them.
"""

import copy
from collections.abc import Sequence
from typing import Any

from stripe_sandbox import errors
from stripe_sandbox.api import forms
from stripe_sandbox.state import Json, Work

DEPTH_MAX = 4
"""Stripe's bound on the levels of a path in `expand[]`."""

LIMIT_MAX = 100
"""The most objects of a page."""

ALWAYS = {"subscription": "items.data.price", "subscription_item": "price", "item": "price"}
LISTS = {"subscription": "items", "invoice": "lines"}
"""Fields with a list of objects inside another object; their private fields (`_...`) are hidden too."""

INNER_PAGE = 10
"""How many objects a list inside another object shows; the list's own route has the others."""

UNLESS_EXPANDED = {"checkout.session": "line_items", "payment_link": "line_items", "invoice": "payments"}
NEVER = {"checkout.session": ("subscription_data",)}


def render(work: Work, stored: Json, expand: Sequence[str] = (), *, inner_max: int = INNER_PAGE) -> Json:
    """Return the object as Stripe shows it, with the first page of the list inside it.

    Raises InvalidParameter if a path of `expand` cannot be expanded.
    """
    shown = _public(copy.deepcopy(stored))
    kind = shown["object"]
    if inner := LISTS.get(kind):
        shown[inner]["has_more"] = len(shown[inner]["data"]) > inner_max
        shown[inner]["data"] = [_public(each) for each in shown[inner]["data"][:inner_max]]
    for private in NEVER.get(kind, ()):
        shown.pop(private, None)
    hidden = UNLESS_EXPANDED.get(kind)
    if hidden and not any(path.split(".")[0] == hidden for path in expand):
        shown.pop(hidden, None)
    elif hidden:
        found = [work.find_any(item) if isinstance(item, str) else item for item in shown[hidden]["data"]]
        shown[hidden]["data"] = [render(work, item) for item in found if item is not None]
    if kind == "subscription" and (pending := (shown["pending_update"] or {}).get("subscription_items")):
        shown["pending_update"]["subscription_items"] = [_public(each) for each in pending]
        _expand(work, shown, ["pending_update", "subscription_items", "price"], param="")
    if always := ALWAYS.get(kind):
        _expand(work, shown, always.split("."), param="")
    _show_discounts(work, shown)
    for item in _subscription_items(shown):
        item["plan"] = legacy_plan(item["price"])
    for index, path in enumerate(expand):
        steps = path.split(".")
        if len(steps) > DEPTH_MAX:
            raise errors.InvalidParameter(f"You cannot expand more than {DEPTH_MAX} levels.", param=f"expand[{index}]")
        _expand(work, shown, steps, param=f"expand[{index}]")
    return shown


def _show_discounts(work: Work, shown: Json) -> None:
    """Leave out discounts that are over; a customer's discount is shown in full."""
    if shown["object"] == "subscription":
        shown["discounts"] = [
            each for each in shown["discounts"] if not (work.find("discount", each) or {}).get("_over")
        ]
    elif shown["object"] == "customer" and shown.get("discount"):
        found = work.find("discount", shown["discount"])
        shown["discount"] = _public(found) if found and not found.get("_over") else None


def _subscription_items(shown: Json) -> list[Json]:
    """Return the subscription items that an answer shows: those of a subscription, or a single item."""
    match shown["object"]:
        case "subscription":
            found: list[Json] = shown["items"]["data"]
            return found + ((shown["pending_update"] or {}).get("subscription_items") or [])
        case "subscription_item":
            return [shown]
        case _:
            return []


def _public(stored: Json) -> Json:
    return {name: value for name, value in stored.items() if not name.startswith("_")}


def render_page(work: Work, found: tuple[list[Json], bool], url: str, expand: Sequence[str] = ()) -> Json:
    """Return a page of a list. Raises InvalidParameter if a path of `expand` does not begin with `data.`."""
    objects, has_more = found
    for index, path in enumerate(expand):
        if not path.startswith("data."):
            raise errors.InvalidParameter(f"This property cannot be expanded ({path}).", param=f"expand[{index}]")
    inner = [path.removeprefix("data.") for path in expand]
    return {**listed([render(work, each, inner) for each in objects], url), "has_more": has_more}


def render_inner(work: Work, stored: Json, url: str, params: forms.Params) -> Json:
    """Return a page of the list inside an object, in the list's order. Raises InvalidParameter and Refused."""
    inner = LISTS[stored["object"]]
    data = stored[inner]["data"]
    limit = params.get("limit", INNER_PAGE)
    if not 1 <= limit <= LIMIT_MAX:
        raise errors.InvalidParameter(f"limit must be between 1 and {LIMIT_MAX}.", param="limit")
    if params.get("starting_after"):
        ids = [each["id"] for each in data]
        if params["starting_after"] not in ids:
            raise errors.Refused("No such object in this list.", param="starting_after", code="resource_missing")
        data = data[ids.index(params["starting_after"]) + 1 :]
    shown = render(work, {**stored, inner: {**stored[inner], "data": data[:limit]}}, inner_max=limit)
    return {**listed(shown[inner]["data"], url), "has_more": len(data) > limit}


def listed(objects: list[Json], url: str) -> Json:
    """Return a list that has no further page."""
    return {"object": "list", "data": objects, "has_more": False, "url": url}


def _expand(work: Work, at: Any, steps: list[str], param: str) -> None:  # noqa: ANN401 - JSON
    if isinstance(at, list):
        for each in at:
            _expand(work, each, steps, param)
        return
    step, *rest = steps
    if not isinstance(at, dict) or step not in at:
        raise errors.InvalidParameter(f"This property cannot be expanded ({step}).", param=param)
    if isinstance(at[step], str):
        found = work.find_any(at[step])
        if found is None:
            raise errors.InvalidParameter(f"This property cannot be expanded ({step}).", param=param)
        at[step] = render(work, found)
    elif isinstance(at[step], list):
        found_all = [work.find_any(each) if isinstance(each, str) else None for each in at[step]]
        at[step] = [
            each if found is None else render(work, found) for each, found in zip(at[step], found_all, strict=True)
        ]
    if rest and at[step] is not None:
        _expand(work, at[step], rest, param)


def legacy_plan(price: Json) -> Json:
    """Return a price as a plan, the older form, which subscription items still have beside the price."""
    recurring = price["recurring"]
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "livemode": False,
        "metadata": price["metadata"],
        "meter": recurring["meter"],
        "nickname": price["nickname"],
        "product": price["product"],
        "tiers_mode": None,
        "transform_usage": None,
        "trial_period_days": None,
        "usage_type": recurring["usage_type"],
    }
