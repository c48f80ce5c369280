"""The objects that a catalog needs at Stripe, and how they differ from the existing objects. Pure: no I/O.

A catalog needs a product for each plan with prices and for each charged meter of a plan (the portal accepts one product
per plan), a meter for each charged meter, a price for each charge, and one configuration of the portal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

from billing_svc.catalog import model
from billing_svc.platform import money
from billing_svc.stripe import client

Params: TypeAlias = Mapping[str, Any]

# Customers can change payment methods, see invoices and cancel in the portal. They cannot change plans there: only
# ChangePlan first sends the usage so far.
PORTAL_FEATURES: Params = {
    "customer_update": {"enabled": True, "allowed_updates": ["address", "email", "name", "tax_id"]},
    "invoice_history": {"enabled": True},
    "payment_method_update": {"enabled": True},
    "subscription_cancel": {"enabled": True, "mode": "at_period_end", "proration_behavior": "none"},
    "subscription_update": {"enabled": False},
}


@dataclass(frozen=True, slots=True)
class WantedObject:
    """A price that the catalog needs. A metered price has a meter, whose event name is the price's lookup key."""

    lookup_key: str
    product_id: str
    product_name: str
    plan: str
    price: str
    meter: str
    pay_as_you_go: bool
    unit_amount: Decimal
    currency: str
    interval: str

    @property
    def is_metered(self) -> bool:
        """Say whether the price multiplies reported usage."""
        return bool(self.meter)

    def product_params(self) -> Params:
        """Return the parameters of the price's product."""
        return {"id": self.product_id, "name": self.product_name, "metadata": {"plan": self.plan}}

    def meter_params(self) -> Params:
        """Return the parameters of the price's meter."""
        return {
            "display_name": self.product_name,
            "event_name": self.lookup_key,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }

    def params(self, meter_id: str | None) -> Params:
        """Return the parameters of the price."""
        recurring = {"interval": self.interval}
        if self.is_metered:
            recurring |= {"usage_type": "metered", "meter": meter_id or ""}
        return {
            "product": self.product_id,
            "currency": self.currency,
            "unit_amount_decimal": f"{self.unit_amount:f}",
            "recurring": recurring,
            "lookup_key": self.lookup_key,
            "transfer_lookup_key": True,
            "metadata": {"plan": self.plan, "meter": self.meter},
        }

    def is_met_by(self, price: client.Data, meter_id: str | None) -> bool:
        """Say whether a price at Stripe charges the same; someone may have given our lookup key to another price."""
        recurring, amount = price.get("recurring"), price.get("unit_amount_decimal")
        return (
            bool(price["active"])
            and price["product"] == self.product_id
            and price["currency"] == self.currency
            and amount is not None
            and Decimal(amount) == self.unit_amount
            and recurring is not None
            and (recurring["interval"], recurring.get("interval_count", 1)) == (self.interval, 1)
            and recurring.get("meter") == (meter_id if self.is_metered else None)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The catalog's objects at Stripe: by id, by event name (an active meter is preferred), by lookup key."""

    products: Mapping[str, client.Data]
    meters: Mapping[str, client.Data]
    prices: Mapping[str, client.Data]
    portal: client.Data | None

    def meter_id(self, wanted: WantedObject) -> str | None:
        """Return the id of a price's meter, active or not."""
        meter = self.meters.get(wanted.lookup_key)
        return None if meter is None else str(meter["id"])


@dataclass(frozen=True, slots=True)
class Difference:
    """An object that is missing at Stripe or differs from the catalog; `drift`: someone changed it at Stripe."""

    kind: str
    key: str
    detail: str
    # The operation that removes the difference, and its parameters. A price may need its meter to be created first.
    operation: str
    params: Params
    wanted: WantedObject | None = None
    # The present object at Stripe that is replaced or changed.
    old: client.Data | None = None
    drift: bool = False


def wanted_prices(catalog: model.Catalog) -> list[WantedObject]:
    """Return all prices of a catalog, in its order. Amounts are in minor units."""
    wanted = []
    for plan in catalog.plans.values():
        product_id = f"{catalog.name}_{plan.key}"
        for key, price in plan.prices.items():
            wanted.append(
                WantedObject(
                    lookup_key=plan.base_lookup_key(key),
                    product_id=product_id,
                    product_name=plan.name,
                    plan=plan.key,
                    price=key,
                    meter="",
                    pay_as_you_go=False,
                    unit_amount=Decimal(catalog.minor_units(price)),
                    currency=catalog.currency,
                    interval=price.interval,
                )
            )
        for metered in plan.metered_prices:
            unit = catalog.meters[metered.meter].display_name or metered.meter
            wanted.append(
                WantedObject(
                    lookup_key=metered.lookup_key,
                    product_id=metered.lookup_key,
                    product_name=f"{plan.name}: {unit} beyond included",
                    plan=plan.key,
                    price="",
                    meter=metered.meter,
                    pay_as_you_go=metered.pay_as_you_go,
                    unit_amount=money.in_minor_units(metered.limit.unit_price_exact, catalog.currency),
                    currency=catalog.currency,
                    interval="month",
                )
            )
    return wanted


def differences(catalog: model.Catalog, wanted: list[WantedObject], found: Found) -> list[Difference]:
    """Return what has to be done at Stripe, in an order in which it can be done; empty if nothing."""
    seen: set[str] = set()
    steps: list[Difference] = []
    for wanted_price in wanted:
        if wanted_price.product_id not in seen:
            seen.add(wanted_price.product_id)
            steps += _product(wanted_price, found.products.get(wanted_price.product_id))
        if wanted_price.is_metered:
            steps += _meter(wanted_price, found.meters.get(wanted_price.lookup_key))
        steps += _price(wanted_price, found)
    return steps + _portal(catalog, found.portal)


def _product(wanted: WantedObject, product: client.Data | None) -> list[Difference]:
    if product is None:
        return [Difference("product", wanted.product_id, "missing", "products.create", wanted.product_params(), wanted)]
    changes: dict[str, Any] = {}
    told = []
    if product["name"] != wanted.product_name:
        changes["name"] = wanted.product_name
        told.append(f"is called {product['name']!r}, not {wanted.product_name!r}")
    if not product["active"]:
        changes["active"] = True
        told.append("is archived")
    if not changes:
        return []
    params = {"product": wanted.product_id, **changes}
    return [
        Difference(
            "product",
            wanted.product_id,
            " and ".join(told),
            "products.update",
            params,
            wanted,
            product,
            drift="active" in changes,
        )
    ]


def _meter(wanted: WantedObject, meter: client.Data | None) -> list[Difference]:
    if meter is None:
        return [
            Difference("meter", wanted.lookup_key, "missing", "billing.meters.create", wanted.meter_params(), wanted)
        ]
    params = {"meter": meter["id"]}
    if meter["status"] != "active":
        return [
            Difference(
                "meter",
                wanted.lookup_key,
                "is switched off",
                "billing.meters.reactivate",
                params,
                wanted,
                meter,
                drift=True,
            )
        ]
    if meter["display_name"] != wanted.product_name:
        detail = f"is called {meter['display_name']!r}, not {wanted.product_name!r}"
        params["display_name"] = wanted.product_name
        return [Difference("meter", wanted.lookup_key, detail, "billing.meters.update", params, wanted, meter)]
    return []


def _price(wanted: WantedObject, found: Found) -> list[Difference]:
    price, meter_id = found.prices.get(wanted.lookup_key), found.meter_id(wanted)
    if price is not None and wanted.is_met_by(price, meter_id):
        return []
    detail = "missing" if price is None else f"{_told(price)} becomes {_told(wanted.params(meter_id))}"
    is_ours = price is None or (price["product"] == wanted.product_id and price["active"])
    # Prices are immutable: a changed price is a new price, which takes over the lookup key. Existing subscriptions keep
    # the old price.
    return [
        Difference(
            "price",
            wanted.lookup_key,
            detail,
            "prices.create",
            wanted.params(meter_id),
            wanted,
            price,
            drift=not is_ours,
        )
    ]


def _told(price: client.Data) -> str:
    recurring = price["recurring"]
    every = f"a {recurring['interval']}" if recurring else "once"
    off = "" if price.get("active", True) else ", switched off"
    return f"{price['unit_amount_decimal']} {price['currency']} (minor units) {every} for {price['product']}{off}"


def _portal(catalog: model.Catalog, portal: client.Data | None) -> list[Difference]:
    if portal is None:
        params = {"features": PORTAL_FEATURES, "metadata": {"catalog": catalog.name}}
        return [Difference("portal", catalog.name, "missing", "billing_portal.configurations.create", params)]
    different = [
        name
        for name, wanted in PORTAL_FEATURES.items()
        if any(portal["features"][name].get(key) != value for key, value in wanted.items())
    ]
    told = [f"its {name} differs" for name in different] + ([] if portal["active"] else ["is switched off"])
    if not told:
        return []
    changes: Params = {
        "configuration": portal["id"],
        "active": True,
        "features": {name: PORTAL_FEATURES[name] for name in different},
    }
    operation = "billing_portal.configurations.update"
    return [Difference("portal", catalog.name, " and ".join(told), operation, changes, old=portal, drift=True)]
