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


@dataclass(frozen=True, slots=True)
class ChosenPrice:
    """What the account will have after the change."""

    plan: parts.Plan
    price: str
    quantity: int
    catalog_version: int

    def is_of(self, held: Held) -> bool:
        """Say whether the account has this already."""
        return (self.plan.key, self.price, self.quantity) == (held.plan, held.price, held.quantity)


def choose(order: ChangeOrder, held: Held, newest: model.Catalog, newest_version: int) -> ChosenPrice:
    """Return the target of an order. An account that keeps its plan keeps the catalog version that it was sold under.

    Raises PlanNotFound, PlanNotSold, PriceNotFound, and InvalidRequest on the quantity.
    """
    stays = order.plan in {"", held.plan}
    catalog = held.catalog if stays else newest
    plan = catalog.plans.get(order.plan or held.plan)
    if plan is None:
        raise errors.PlanNotFound(f"plan: the catalog has no plan {order.plan!r}", {"plan": order.plan})
    if not stays and (not plan.prices or not plan.sold):
        raise errors.PlanNotSold(f"plan: {plan.key} is not for sale", {"plan": plan.key})
    price = order.price or (held.price if stays else next(iter(plan.prices)))
    if price not in plan.prices:
        metadata = {"plan": plan.key, "price": price}
        raise errors.PriceNotFound(f"price: plan {plan.key} has no price {price!r}", metadata)
    per_seat = plan.prices[price].per_seat
    quantity = order.quantity
    if quantity is None:
        quantity = max(1, held.quantity) if per_seat else 1
    if problem := pricing_rules.quantity_problem(plan, price, quantity, catalog.currency):
        raise errors.InvalidRequest([errors.FieldViolation("quantity", problem)])
    return ChosenPrice(plan, price, quantity, held.catalog_version if stays else newest_version)


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

    def is_in(self, subscription: stripe_subscriptions.StripeSubscription) -> bool:
        """Say whether the subscription has the target's prices and quantity already."""
        there = {item.price_id: item.quantity for item in subscription.items}
        return there.get(self.base_price_id) == self.quantity and set(self.metered_price_ids) <= there.keys()


def item_changes(
    items: Sequence[stripe_subscriptions.Item], ours: Mapping[str, bool], target: ChangeTarget
) -> list[dict[str, Any]]:
    """Return Stripe's item changes for the target; `ours`: for each price of our catalog, whether it is metered.

    Items that someone added at Stripe stay.
    """
    changes: list[dict[str, Any]] = []
    base = next((item for item in items if ours.get(item.price_id) is False), None)
    changes.append(
        {
            **({} if base is None else {"id": base.item_id}),
            "price": target.base_price_id,
            "quantity": target.quantity,
        }
    )
    there = {item.price_id: item.item_id for item in items if ours.get(item.price_id) is True}
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
