"""The written rules, applied to what Stripe has: a model of its own, which shares nothing with the service.

ADR 0019 has the rules about periods and trials, 0020 those about items, 0021 those about pauses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.walk.shop import PER_SEAT, Shop

GIVING = frozenset({"active", "trialing", "past_due"})
OVER = frozenset({"canceled", "incomplete_expired"})


@dataclass
class Expected:
    """What follows from the subscriptions of a customer at Stripe."""

    shop: Shop
    # The plan that each subscription sells: without a base item, it keeps its last.
    sold: dict[str, str] = field(default_factory=dict)
    # Subscriptions of pay-as-you-go: those that never sold a plan, with the plan whose units they charge.
    metered_only: dict[str, str] = field(default_factory=dict)

    def learn(self, subscriptions: Sequence[dict[str, Any]]) -> None:
        """Note what each subscription sells now."""
        for one in subscriptions:
            bases, metered = self.shop.base_items(one), self.shop.metered_items(one)
            if metered and not bases:
                self.metered_only.setdefault(one["id"], self.shop.plan_of_meter[_meter(metered[0])])
            if bases:
                self.sold[one["id"]] = self.shop.plan_of_product[bases[-1]["price"]["product"]]

    def deciding(self, subscriptions: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the subscription that gives the plan: of those that give one, the one that began last."""
        giving = [one for one in subscriptions if one["id"] in self.sold and one["status"] in GIVING]
        return max(giving, key=lambda one: (one["start_date"], one["id"]), default=None)

    def plan(self, subscriptions: Sequence[dict[str, Any]]) -> str:
        found = self.deciding(subscriptions)
        return "free" if found is None else self.sold[found["id"]]

    def quantity(self, subscriptions: Sequence[dict[str, Any]]) -> int:
        """Return for how many seats the plan's quota counts."""
        found = self.deciding(subscriptions)
        if found is None or self.sold[found["id"]] not in PER_SEAT:
            return 1
        bases = self.shop.base_items(found)
        return int(bases[-1]["quantity"]) if bases else 1

    def charges(self, subscription: dict[str, Any] | None) -> bool:
        """Say whether the units of a subscription are on some invoice: not in a trial, and not in a pause."""
        return subscription is not None and subscription["status"] != "trialing"

    def finding_kinds(self, subscriptions: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
        """Return the findings that the items justify, as (kind, object at Stripe)."""
        found = set()
        living = [one for one in subscriptions if one["status"] not in OVER]
        for one in living:
            if len(self.shop.base_items(one)) > 1:
                found.add(("two_plans", one["id"]))
            if self.items_differ(one):
                found.add(("items_differ", one["id"]))
        giving = [one for one in living if one["status"] in GIVING and one["id"] in self.sold]
        if len(giving) > 1:
            found |= {("two_subscriptions", one["customer"]) for one in giving}
        return found

    def items_differ(self, subscription: dict[str, Any]) -> bool:
        """Say whether the metered items are not exactly those of the plan as sold, or its base item is missing."""
        items = subscription["items"]["data"]
        metered = [one["price"]["id"] for one in items if one["price"]["recurring"]["meter"]]
        plan = self.sold.get(subscription["id"])
        if plan is not None:
            return metered != self.shop.metered(plan) or not self.shop.base_items(subscription)
        only = self.metered_only.get(subscription["id"])
        return only is not None and metered != self.shop.metered(only)


def _meter(item: dict[str, Any]) -> str:
    return str(item["price"]["recurring"]["meter"])
