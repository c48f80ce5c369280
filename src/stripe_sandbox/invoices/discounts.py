"""Discounts: a coupon redeemed for a customer or a subscription, and what it takes off an invoice."""

import decimal
from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import amounts, coupons
from stripe_sandbox.state import Json, Work
from stripe_sandbox.subscriptions import periods

MONTH = {"interval": "month", "interval_count": 1}


def redeem(
    context: Context, given: forms.Params, customer_id: str, subscription_id: str | None, param: str = "discounts"
) -> Json:
    """Store a new discount. Raises InvalidParameter, and Refused for a coupon that cannot be redeemed."""
    coupon, code_id = coupons.redeemed(context, given, param)
    months = coupon["duration_in_months"]
    discount = {
        "id": state.new_id("di"),
        "object": "discount",
        "checkout_session": None,
        "customer": customer_id,
        "customer_account": None,
        "end": periods.step(context.now, MONTH, months) if months else None,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": code_id,
        "source": {"coupon": coupon["id"], "type": "coupon"},
        "start": context.now,
        "subscription": subscription_id,
        "subscription_item": None,
    }
    context.work.insert("discount", discount, created=context.now)
    context.emit("customer.discount.created", discount)
    return discount


def chosen(context: Context, subscription: Json, given: Any, param: str = "discounts") -> list[str]:  # noqa: ANN401 - a parameter of several types
    """Return the ids of a subscription's discounts after a change: new discounts, and present ones that it names."""
    if given == "":
        return []
    kept = []
    for index, each in enumerate(given):
        if "discount" not in each:
            at = f"{param}[{index}]"
            kept.append(redeem(context, each, subscription["customer"], subscription["id"], at)["id"])
        elif each["discount"] in subscription["discounts"]:
            kept.append(each["discount"])
        else:
            raise errors.Refused("The discount is not one of the subscription's.", param=f"{param}[{index}][discount]")
    return kept


def of(work: Work, subscription: Json | None, customer: Json, now: int) -> list[Json]:
    """Return the discounts in force: the subscription's own, or its customer's if it has none."""
    ids = list(subscription["discounts"]) if subscription else []
    if not ids and customer.get("discount"):
        ids = [customer["discount"]]
    found = [work.get("discount", each) for each in ids]
    return [each for each in found if each["end"] is None or each["end"] > now]


def share_left(work: Work, subscription: Json, now: int) -> decimal.Decimal:
    """Return the part of a price that is left after the discounts in percent; prorations are counted from it."""
    left = decimal.Decimal(1)
    for discount in of(work, subscription, work.get("customer", subscription["customer"]), now):
        left *= 1 - coupons.share_off(work.get("coupon", discount["source"]["coupon"]))
    return left


def use_up(context: Context, discount_ids: list[str]) -> None:
    """End the discounts that are for a single invoice."""
    for discount_id in discount_ids:
        discount = context.work.get("discount", discount_id)
        if context.work.get("coupon", discount["source"]["coupon"])["duration"] == "once":
            end(context, discount)


def end(context: Context, discount: Json) -> None:
    """End a discount now; `rendering` does not show it on its customer and subscription any more."""
    ended = context.work.replace({**discount, "end": context.now, "_over": True})
    context.emit("customer.discount.deleted", ended)


def taken_off(work: Work, discount_ids: list[str], data: list[Json]) -> list[Json]:
    """Return the lines with their discount amounts; each discount is taken off what the earlier discounts left.

    An amount is rounded once for the invoice, and shared among the lines so that the sum stays.
    """
    lines = [{**line, "discount_amounts": []} for line in data]
    for discount_id in discount_ids:
        coupon = work.get("coupon", work.get("discount", discount_id)["source"]["coupon"])
        bases = [_left(line) if line["discountable"] else 0 for line in lines]
        base = sum(bases)
        if base <= 0:
            continue
        off = min(base, coupon["amount_off"] or amounts.rounded(base * coupons.share_off(coupon)))
        given, reached = 0, 0
        for line, part in zip(lines, bases, strict=True):
            reached += part
            until = amounts.share(off, reached, base)
            if until != given:
                line["discount_amounts"].append({"amount": until - given, "discount": discount_id})
            given = until
    return lines


def _left(line: Json) -> int:
    return int(line["amount"] - sum(each["amount"] for each in line["discount_amounts"]))


def set_for_customer(context: Context, customer_id: str, coupon_id: str | None) -> Json | None:
    """Give a customer a discount, or end it; with Stripe, a person does this in the dashboard."""
    customer = context.work.get("customer", customer_id)
    if customer.get("discount"):
        end(context, context.work.get("discount", customer["discount"]))
    if coupon_id is None:
        return None
    made = redeem(context, {"coupon": coupon_id}, customer_id, None, "coupon")
    context.update(context.work.get("customer", customer_id), {"discount": made["id"]}, "customer.updated")
    return made


def delete_customers(context: Context, params: forms.Params, customer_id: str) -> Json:
    """Answer DELETE /v1/customers/{id}/discount."""
    del params
    discount_id = context.work.get("customer", customer_id).get("discount")
    return _deleted(context, [discount_id] if discount_id else [])


def delete_subscriptions(context: Context, params: forms.Params, subscription_id: str) -> Json:
    """Answer DELETE /v1/subscriptions/{id}/discount."""
    del params
    return _deleted(context, context.work.get("subscription", subscription_id)["discounts"])


def _deleted(context: Context, discount_ids: list[str]) -> Json:
    living = [each for each in (context.work.get("discount", one) for one in discount_ids) if not each.get("_over")]
    if not living:
        raise errors.NotFound("There is no discount.", code="resource_missing")
    end(context, living[0])
    return {**context.show(context.work.get("discount", living[0]["id"]), {}), "deleted": True}
