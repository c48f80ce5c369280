"""Products and prices."""

import decimal
from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json

PRODUCT_FIELDS = ("name", "active", "description", "unit_label", "statement_descriptor", "url")
LOOKUP_KEYS_MAX = 10


def create_product(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/products; the id may be the caller's own."""
    product = {
        "id": params.get("id") or state.new_id("prod"),
        "object": "product",
        "attributes": [],
        "created": context.now,
        "default_price": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "package_dimensions": None,
        "shippable": None,
        "tax_code": None,
        "type": "service",
        "updated": context.now,
        **{name: params.get(name) or None for name in PRODUCT_FIELDS},
        "active": params.get("active", True),
    }
    if context.work.find_any(product["id"]):
        raise errors.Refused("Product already exists.", param="id", code="resource_already_exists")
    return context.show(context.add("product", product, "product.created"), params)


def retrieve_product(context: Context, params: forms.Params, product_id: str) -> Json:
    """Answer GET /v1/products/{id}."""
    return context.show(context.work.get("product", product_id), params)


def list_products(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/products; filters: ids, and whether a product is active."""
    where = {"id": params["ids"]} if "ids" in params else {}
    if "active" in params:
        where["active"] = params["active"]
    return context.show_list("product", "/v1/products", where, params)


def update_product(context: Context, params: forms.Params, product_id: str) -> Json:
    """Answer POST /v1/products/{id}."""
    product = context.work.get("product", product_id)
    changes: Json = {name: params[name] if params[name] != "" else None for name in PRODUCT_FIELDS if name in params}
    changes["metadata"] = rules.merged_metadata(product["metadata"], params.get("metadata"))
    if any(product[name] != value for name, value in changes.items()):
        changes["updated"] = context.now
    return context.show(context.update(product, changes, "product.updated"), params)


def create_price(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/prices. Amount and interval can never change: the update has no parameters for them."""
    if "product" not in params:
        raise errors.InvalidParameter("Missing required param: product.", param="product", code="parameter_missing")
    unit_amount, unit_amount_decimal = _amounts(params)
    recurring = _recurring(context, params["recurring"]) if "recurring" in params else None
    context.work.get("product", params["product"], param="product")
    price = {
        "id": state.new_id("price"),
        "object": "price",
        "active": params.get("active", True),
        "billing_scheme": "per_unit",
        "created": context.now,
        "currency": _currency(params["currency"]),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": None,
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "nickname": params.get("nickname"),
        "product": params["product"],
        "recurring": recurring,
        "tax_behavior": params.get("tax_behavior", "unspecified"),
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "recurring" if recurring else "one_time",
        "unit_amount": unit_amount,
        "unit_amount_decimal": unit_amount_decimal,
    }
    if "lookup_key" in params:
        _free_lookup_key(context, params, for_price=price["id"])
        price["lookup_key"] = params["lookup_key"]
    return context.show(context.add("price", price, "price.created"), params)


def _amounts(params: forms.Params) -> tuple[int | None, str]:
    """Return an amount as whole minor units (None if it is a fraction) and as the exact decimal."""
    if ("unit_amount" in params) == ("unit_amount_decimal" in params):
        raise errors.InvalidParameter(
            "Exactly one of unit_amount and unit_amount_decimal must be given.", param="unit_amount"
        )
    exact = decimal.Decimal(params["unit_amount"] if "unit_amount" in params else params["unit_amount_decimal"])
    if exact < 0:
        raise errors.InvalidParameter("Invalid non-negative integer.", param="unit_amount")
    whole = int(exact) if exact == exact.to_integral_value() else None
    return whole, rules.plain(exact)


def _currency(code: str) -> str:
    lowered = code.lower()
    if len(lowered) != len("usd") or not lowered.isalpha() or not lowered.isascii():
        raise errors.InvalidParameter(f"Invalid currency: {code[:20]}.", param="currency")
    return lowered


def _recurring(context: Context, given: forms.Params) -> Json:
    usage_type = given.get("usage_type", "licensed")
    meter = given.get("meter")
    if (usage_type == "metered") != (meter is not None):
        raise errors.InvalidParameter(
            "A metered price needs recurring[meter] and recurring[usage_type]=metered, other prices neither.",
            param="recurring[meter]",
        )
    if meter is not None and context.work.get("billing.meter", meter, param="recurring[meter]")["status"] != "active":
        raise errors.Refused(f"The meter {meter} is not active.", param="recurring[meter]")
    interval_count = given.get("interval_count", 1)
    if interval_count < 1:
        raise errors.InvalidParameter("interval_count must be at least 1.", param="recurring[interval_count]")
    return {
        "interval": given["interval"],
        "interval_count": interval_count,
        "meter": meter,
        "trial_period_days": None,
        "usage_type": usage_type,
    }


def _free_lookup_key(context: Context, params: forms.Params, *, for_price: str) -> None:
    """Take the lookup key from the price that has it, if `transfer_lookup_key` is set; else raise Refused."""
    key = params["lookup_key"]
    holders, _ = context.work.select("price", {"lookup_key": key}, state.Page(1))
    for holder in holders:
        if holder["id"] != for_price and not params.get("transfer_lookup_key"):
            raise errors.Refused(f"The price `{holder['id']}` already uses the lookup key '{key}'.", param="lookup_key")
        if holder["id"] != for_price:
            context.update(holder, {"lookup_key": None}, "price.updated")


def retrieve_price(context: Context, params: forms.Params, price_id: str) -> Json:
    """Answer GET /v1/prices/{id}."""
    return context.show(context.work.get("price", price_id), params)


def list_prices(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/prices."""
    where: dict[str, Any] = {name: params[name] for name in ("active", "currency", "product", "type") if name in params}
    for name, value in params.get("recurring", {}).items():
        where[f"recurring.{name}"] = value
    if "lookup_keys" in params:
        if len(params["lookup_keys"]) > LOOKUP_KEYS_MAX:
            raise errors.InvalidParameter(f"At most {LOOKUP_KEYS_MAX} lookup keys.", param="lookup_keys")
        where["lookup_key"] = params["lookup_keys"]
    return context.show_list("price", "/v1/prices", where, params)


def update_price(context: Context, params: forms.Params, price_id: str) -> Json:
    """Answer POST /v1/prices/{id}."""
    price = context.work.get("price", price_id)
    changes: Json = {name: params[name] for name in ("active", "nickname", "tax_behavior") if name in params}
    changes["metadata"] = rules.merged_metadata(price["metadata"], params.get("metadata"))
    if "lookup_key" in params:
        _free_lookup_key(context, params, for_price=price_id)
        changes["lookup_key"] = params["lookup_key"]
    return context.show(context.update(price, changes, "price.updated"), params)
