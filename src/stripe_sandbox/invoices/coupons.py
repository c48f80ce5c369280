"""Answers requests about coupons and promotion codes."""

import decimal

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json

PERCENT_MAX = 100


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/coupons; the id may be the caller's own."""
    if ("percent_off" in params) == ("amount_off" in params):
        raise errors.InvalidParameter("Give either percent_off or amount_off.", param="percent_off")
    if "percent_off" in params and not 0 < params["percent_off"] <= PERCENT_MAX:
        raise errors.InvalidParameter("percent_off must be above 0 and at most 100.", param="percent_off")
    if "amount_off" in params and (params["amount_off"] < 1 or "currency" not in params):
        raise errors.InvalidParameter("amount_off must be positive, and needs a currency.", param="currency")
    duration = params.get("duration", "once")
    if (duration == "repeating") != ("duration_in_months" in params):
        raise errors.InvalidParameter(
            "duration_in_months is needed for repeating, and for no other duration.", param="duration_in_months"
        )
    coupon_id = params.get("id") or state.new_id("coupon")
    if context.work.find_any(coupon_id):
        raise errors.Refused("Coupon already exists.", param="id", code="resource_already_exists")
    coupon = {
        "id": coupon_id,
        "object": "coupon",
        "amount_off": params.get("amount_off"),
        "created": context.now,
        "currency": params["currency"].lower() if "amount_off" in params else None,
        "duration": duration,
        "duration_in_months": params.get("duration_in_months"),
        "livemode": False,
        "max_redemptions": params.get("max_redemptions"),
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "name": params.get("name"),
        "percent_off": params.get("percent_off"),
        "redeem_by": params.get("redeem_by"),
        "times_redeemed": 0,
        "valid": True,
    }
    return context.show(context.add("coupon", coupon, "coupon.created"), params)


def retrieve(context: Context, params: forms.Params, coupon_id: str) -> Json:
    """Answer GET /v1/coupons/{id}."""
    return context.show(_current(context, coupon_id), params)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/coupons."""
    return context.show_list("coupon", "/v1/coupons", {"_deleted": None}, params)


def update(context: Context, params: forms.Params, coupon_id: str) -> Json:
    """Answer POST /v1/coupons/{id}: only its name and metadata can change."""
    coupon = _current(context, coupon_id)
    changes: Json = {"metadata": rules.merged_metadata(coupon["metadata"], params.get("metadata"))}
    if "name" in params:
        changes["name"] = params["name"]
    return context.show(context.update(coupon, changes, "coupon.updated"), params)


def delete(context: Context, params: forms.Params, coupon_id: str) -> Json:
    """Answer DELETE /v1/coupons/{id}: nobody can redeem it any more, and present discounts stay."""
    del params
    coupon = _current(context, coupon_id)
    gone = context.work.replace({**coupon, "valid": False, "_deleted": True})
    context.emit("coupon.deleted", gone)
    return {"id": coupon_id, "object": "coupon", "deleted": True}


def _current(context: Context, coupon_id: str) -> Json:
    coupon = context.work.get("coupon", coupon_id)
    if coupon.get("_deleted"):
        raise errors.NotFound(f"No such coupon: '{coupon_id}'", param="id", code="resource_missing")
    return {**coupon, "valid": not _why_invalid(context, coupon)}


def _why_invalid(context: Context, coupon: Json) -> str | None:
    if coupon.get("_deleted"):
        return "deleted"
    if coupon["redeem_by"] is not None and coupon["redeem_by"] <= context.now:
        return "expired"
    if coupon["max_redemptions"] is not None and coupon["times_redeemed"] >= coupon["max_redemptions"]:
        return "used up"
    return None


def redeemed(context: Context, given: forms.Params, param: str) -> tuple[Json, str | None]:
    """Count a redemption, and return the coupon and the id of the promotion code. Raises Refused."""
    code_id = given.get("promotion_code")
    coupon_id = given.get("coupon")
    if code_id:
        code = context.work.get("promotion_code", code_id, param=f"{param}[promotion_code]")
        if not code["active"]:
            raise errors.Refused("This promotion code is not active.", param=f"{param}[promotion_code]")
        coupon_id = code["promotion"]["coupon"]
        context.work.replace({**code, "times_redeemed": code["times_redeemed"] + 1})
    if not coupon_id:
        raise errors.InvalidParameter("Give a coupon or a promotion_code.", param=param)
    coupon = context.work.get("coupon", coupon_id, param=f"{param}[coupon]")
    if reason := _why_invalid(context, coupon):
        raise errors.Refused(f"Coupon {coupon_id} is {reason}.", param=f"{param}[coupon]", code="coupon_expired")
    return context.work.replace({**coupon, "times_redeemed": coupon["times_redeemed"] + 1}), code_id


def create_code(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/promotion_codes."""
    coupon_id = params["promotion"].get("coupon", "")
    context.work.get("coupon", coupon_id, param="promotion[coupon]")
    code = {
        "id": state.new_id("promo"),
        "object": "promotion_code",
        "active": params.get("active", True),
        "code": params.get("code") or state.new_id("")[1:9].upper(),
        "created": context.now,
        "customer": None,
        "customer_account": None,
        "expires_at": None,
        "livemode": False,
        "max_redemptions": None,
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "promotion": {"coupon": coupon_id, "type": "coupon"},
        "restrictions": {"first_time_transaction": False, "minimum_amount": None, "minimum_amount_currency": None},
        "times_redeemed": 0,
    }
    return context.show(context.add("promotion_code", code, "promotion_code.created"), params)


def retrieve_code(context: Context, params: forms.Params, code_id: str) -> Json:
    """Answer GET /v1/promotion_codes/{id}."""
    return context.show(context.work.get("promotion_code", code_id), params)


def list_codes(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/promotion_codes."""
    where: Json = {name: params[name] for name in ("active", "code") if name in params}
    return context.show_list("promotion_code", "/v1/promotion_codes", where, params)


def update_code(context: Context, params: forms.Params, code_id: str) -> Json:
    """Answer POST /v1/promotion_codes/{id}."""
    code = context.work.get("promotion_code", code_id)
    changes: Json = {"metadata": rules.merged_metadata(code["metadata"], params.get("metadata"))}
    if "active" in params:
        changes["active"] = params["active"]
    return context.show(context.update(code, changes, "promotion_code.updated"), params)


def share_off(coupon: Json) -> decimal.Decimal:
    """Return the part of an amount that a coupon takes off; 0 for a fixed amount."""
    return decimal.Decimal(str(coupon["percent_off"] or 0)) / PERCENT_MAX
