"""The catalog of the walk, and the meaning of its prices at Stripe, read from Stripe alone."""

from dataclasses import dataclass
from typing import Any

from tests.billing_svc.sandboxed import Sandbox

METER = "runs"
# Every price is in whole cents, so that no amount is rounded.
CATALOG = """
catalog: walk
currency: usd
default_plan: free
free_period: calendar_month
meters:
  runs: {unit: run, kind: consumable}
plans:
  free:
    name: Free
    limits: {runs: {included: 5, beyond: deny}}
    pay_as_you_go:
      name: Pay as you go
      limits: {runs: {included: 5, beyond: charge, unit_price: "0.05"}}
  small:
    name: Small
    prices:
      monthly: {amount: "10.00", interval: month}
    limits: {runs: {included: 20, beyond: charge, unit_price: "0.05"}}
  big:
    name: Big
    prices:
      monthly: {amount: "40.00", interval: month}
    limits: {runs: {included: 50, beyond: charge, unit_price: "0.05"}}
  year:
    name: Year
    prices:
      yearly: {amount: "100.00", interval: year}
    limits: {runs: {included: 40, beyond: deny}}
  tried:
    name: Tried
    trial_days: 10
    prices:
      monthly: {amount: "20.00", interval: month}
    limits: {runs: {included: 30, beyond: charge, unit_price: "0.05"}}
  team:
    name: Team
    prices:
      monthly: {amount: "4.00", interval: month, per_seat: true}
    limits: {runs: {included: 10, beyond: deny, per_seat: true}}
    pay_as_you_go:
      name: Team, pay as you go
      limits: {runs: {included: 10, beyond: charge, unit_price: "0.05", per_seat: true}}
"""
PLANS = ("small", "small", "big", "year", "tried", "team")
INCLUDED = {"free": 5, "small": 20, "big": 50, "year": 40, "tried": 30, "team": 10}
PER_SEAT = frozenset({"team"})


@dataclass
class Shop:
    """What is sold: by price, product and meter, as the dashboard shows them."""

    # Prices of the catalog by their lookup key without the catalog's name, such as `small_monthly`.
    prices: dict[str, str]
    metered_of_plan: dict[str, str]
    plan_of_product: dict[str, str]
    # Plans by the id of the meter that charges their units.
    plan_of_meter: dict[str, str]
    meter_of_plan: dict[str, str]

    @classmethod
    async def look(cls, sandbox: Sandbox) -> "Shop":
        """Read the catalog as it was applied to Stripe."""
        listed = [one for one in await sandbox.all("/v1/prices") if one["lookup_key"]]
        found = cls({one["lookup_key"].removeprefix("walk_"): one["id"] for one in listed}, {}, {}, {}, {})
        for price in listed:
            plan = price["lookup_key"].split("_")[1]
            meter = (price["recurring"] or {}).get("meter")
            if meter:
                found.metered_of_plan[plan] = price["id"]
                found.plan_of_meter[meter], found.meter_of_plan[plan] = plan, meter
            else:
                found.plan_of_product[price["product"]] = plan
        return found

    def product(self, plan: str) -> str:
        return next(product for product, of in self.plan_of_product.items() if of == plan)

    def metered(self, plan: str) -> list[str]:
        """Return the catalog's price for a unit beyond a plan's quota, if the plan has one."""
        return [self.metered_of_plan[plan]] if plan in self.metered_of_plan else []

    def base_items(self, subscription: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the items that sell a plan, the item that was added last at the end."""
        items = subscription["items"]["data"]
        flat = [one for one in items if not one["price"]["recurring"]["meter"]]
        return [one for one in flat if one["price"]["product"] in self.plan_of_product]

    def metered_items(self, subscription: dict[str, Any]) -> list[dict[str, Any]]:
        items = subscription["items"]["data"]
        return [one for one in items if (one["price"]["recurring"] or {}).get("meter") in self.plan_of_meter]
