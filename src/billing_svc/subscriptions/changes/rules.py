"""Rules of a plan change: its target, and the items and phases that Stripe gets. Pure: no I/O, `now` is an argument."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from billing_svc.catalog import model, parts
from billing_svc.platform import errors
from billing_svc.pricing import rules as pricing_rules
from billing_svc.stripe import parse
from billing_svc.stripe import subscriptions as stripe_subscriptions

# A change costs what its preview showed if it is made within this time.
PREVIEW_AGE_MAX = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ChangeOrder:
    """A requested change; a field left out ("", None) stays as it is, or takes the new plan's default."""

    account_id: str
    request_id: str
    plan: str
    price: str
    quantity: int | None
    at_period_end: bool
    proration_at: datetime | None
    # May end a schedule at Stripe that this service did not make.
    release_foreign_schedule: bool = False
    # Take the newest catalog's prices and terms, also if the plan stays.
    newest_catalog: bool = False

    @property
    def content(self) -> Mapping[str, object]:
        """The fields that must be equal in a repeat with the same request id.

        `release_foreign_schedule` is left out: the same request is repeated with it after FOREIGN_SCHEDULE.
        """
        return {
            "plan": self.plan,
            "price": self.price,
            "quantity": self.quantity,
            "at_period_end": self.at_period_end,
            "proration_at": None if self.proration_at is None else self.proration_at.isoformat(),
            # Left out where it is not set, as in requests that an earlier release stored.
            **({"newest_catalog": True} if self.newest_catalog else {}),
        }


def require_fresh_preview(order: ChangeOrder, now: datetime) -> None:
    """Raise InvalidRequest if the preview whose instant the order has is too old."""
    if order.proration_at is not None and order.proration_at < now - PREVIEW_AGE_MAX:
        problem = "is more than an hour ago; preview the change again, and send its value with a new request_id"
        raise errors.InvalidRequest([errors.FieldViolation("proration_at", problem)])


@dataclass(frozen=True, slots=True)
class Held:
    """What the account has now, with the catalog version that it was sold under."""

    plan: str
    price: str
    quantity: int
    catalog_version: int
    catalog: model.Catalog
    # The price if somebody made it at Stripe; `price` is empty then.
    custom_price_id: str | None = None


@dataclass(frozen=True, slots=True)
class ChosenPrice:
    """What the account will have after the change; `price` is empty if a price made by hand stays."""

    plan: parts.Plan
    price: str
    quantity: int
    catalog_version: int

    def is_of(self, held: Held) -> bool:
        """Say whether the account has this already."""
        chosen = (self.plan.key, self.price, self.quantity, self.catalog_version)
        return chosen == (held.plan, held.price, held.quantity, held.catalog_version)


def choose(order: ChangeOrder, held: Held, newest: model.Catalog, newest_version: int) -> ChosenPrice:
    """Return the target of an order. An account that keeps its plan keeps the catalog version that it was sold under.

    Raises PlanNotFound, PlanNotSold, PriceNotFound, and InvalidRequest on the quantity.
    """
    stays = order.plan in {"", held.plan} and not order.newest_catalog
    catalog = held.catalog if stays else newest
    plan = catalog.plans.get(order.plan or held.plan)
    if plan is None:
        key = order.plan or held.plan
        raise errors.PlanNotFound(f"plan: the catalog has no plan {key!r}", {"plan": key})
    if not stays and (not plan.prices or not plan.sold):
        raise errors.PlanNotSold(f"plan: {plan.key} is not for sale", {"plan": plan.key})
    same_plan = plan.key == held.plan and held.price in plan.prices
    price = order.price or (held.price if stays or same_plan else next(iter(plan.prices)))
    keeps_custom = stays and not price and held.custom_price_id is not None
    if price not in plan.prices and not keeps_custom:
        metadata = {"plan": plan.key, "price": price}
        raise errors.PriceNotFound(f"price: plan {plan.key} has no price {price!r}", metadata)
    quantity = order.quantity
    if quantity is None:
        quantity = _quantity(plan, price, held, stays=stays and price == held.price)
    elif problem := pricing_rules.quantity_problem(plan, price, quantity, catalog.currency):
        raise errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
    return ChosenPrice(plan, price, quantity, held.catalog_version if stays else newest_version)


def _quantity(plan: parts.Plan, price: str, held: Held, *, stays: bool) -> int:
    """Return the quantity of an order that names none. Raises InvalidRequest if no seats would be bought."""
    if stays:
        return held.quantity
    if not plan.prices[price].per_seat:
        return 1
    if held.quantity == 0:
        problem = "is left out, and the subscription has no seats; name how many to buy"
        raise errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
    return held.quantity


@dataclass(frozen=True, slots=True)
class ChangeTarget:
    """A choice with its prices at Stripe, as stored when the request first arrived."""

    subscription_id: str
    plan: str
    price: str
    quantity: int
    catalog_version: int
    base_price_id: str
    metered_price_ids: tuple[str, ...]
    interval: str
    # The instant for which prorations are computed, in whole seconds; None for a change at the period's end.
    proration_at: int | None

    @property
    def metadata(self) -> Mapping[str, str]:
        """The subscription's metadata after the change."""
        return {"plan": self.plan, "price": self.price, "catalog_version": str(self.catalog_version)}

    def is_in(self, subscription: stripe_subscriptions.StripeSubscription, ours: Collection[str]) -> bool:
        """Say whether the subscription has the target's prices and quantity already, and no other price of ours."""
        there = {item.price_id: item.quantity for item in subscription.items}
        wanted = {self.base_price_id, *self.metered_price_ids}
        return there.get(self.base_price_id) == self.quantity and set(ours) == wanted


def item_changes(
    bases: Sequence[stripe_subscriptions.Item], metered: Sequence[stripe_subscriptions.Item], target: ChangeTarget
) -> list[dict[str, Any]]:
    """Return Stripe's item changes for the target, which replaces every base item. Items that are not ours stay.

    `bases` and `metered` are the items of ours; the first base item gives the plan.
    """
    changes: list[dict[str, Any]] = []
    # Stripe does not accept a price twice: if an item has the target's price already, that item stays.
    base = next((item for item in bases if item.price_id == target.base_price_id), bases[0] if bases else None)
    changes.append(
        {
            **({} if base is None else {"id": base.item_id}),
            "price": target.base_price_id,
            "quantity": target.quantity,
        }
    )
    changes += [{"id": item.item_id, "deleted": True} for item in bases if item is not base]
    there = {item.price_id: item.item_id for item in metered}
    changes += [
        {"id": item_id, "deleted": True}
        for price_id, item_id in there.items()
        if price_id not in target.metered_price_ids
    ]
    # Stripe does not accept a quantity for a metered item.
    changes += [{"price": price_id} for price_id in target.metered_price_ids if price_id not in there]
    return changes


def phases(schedule: Mapping[str, Any], ours: Collection[str], target: ChangeTarget) -> list[dict[str, Any]]:
    """Return a schedule's phases: the present phase unchanged, then one interval of the target.

    Raises LostRace if the schedule does not have exactly one phase, as a new schedule has.
    """
    if len(schedule["phases"]) != 1:
        raise errors.LostRace("someone else changed the subscription's schedule; send the same call again")
    present = schedule["phases"][0]
    discounts = _discounts(present)
    kept = [
        item
        for item in present["items"]
        if parse.id_of(item.get("price"), "the price of a schedule's item") not in ours
    ]
    return [
        {
            "items": [_phase_item(item) for item in present["items"]],
            "start_date": present["start_date"],
            "end_date": present["end_date"],
            **({"trial_end": present["trial_end"]} if present.get("trial_end") else {}),
            **discounts,
        },
        {
            "items": [
                {"price": target.base_price_id, "quantity": target.quantity},
                *({"price": price_id} for price_id in target.metered_price_ids),
                *(_phase_item(item) for item in kept),
            ],
            # After this phase the schedule releases the subscription, which keeps the target's items.
            "duration": {"interval": target.interval, "interval_count": 1},
            "metadata": dict(target.metadata),
            **discounts,
        },
    ]


def _phase_item(item: Mapping[str, Any]) -> dict[str, Any]:
    quantity = item.get("quantity")
    return {
        "price": parse.id_of(item.get("price"), "the price of a schedule's item"),
        **({} if quantity is None else {"quantity": quantity}),
    }


def _discounts(phase: Mapping[str, Any]) -> dict[str, Any]:
    """Return a phase's discounts, to pass them on: a phase without discounts would remove the subscription's."""
    found = [
        {kind: parse.id_of(discount[kind], "the discount of a schedule's phase")}
        for discount in phase.get("discounts") or ()
        for kind in ("discount", "coupon", "promotion_code")
        if discount.get(kind)
    ]
    return {"discounts": found} if found else {}
