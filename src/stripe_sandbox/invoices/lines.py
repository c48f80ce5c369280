"""The lines of an invoice, each with one charge."""

import dataclasses
from typing import Any

from stripe_sandbox import state
from stripe_sandbox.invoices import amounts
from stripe_sandbox.meters import usage
from stripe_sandbox.state import Json


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A future line of an invoice. With `metered_after`, its usage is counted again until the invoice is finalised."""

    amount: int
    currency: str
    start: int
    end: int
    quantity: int = 1
    description: str | None = None
    price: Json | None = None
    subscription: str | None = None
    item: str | None = None
    invoice_item: str | None = None
    proration: bool = False
    metered_after: int | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def in_advance(work: state.Work, subscription: Json, item: Json, *, charged: bool = True) -> Charge:
    """Return the charge for the current period of an item that is not metered; `charged` False: in a trial, so 0."""
    price = work.get("price", item["price"])
    return Charge(
        amount=amounts.of_units(price["unit_amount_decimal"], item["quantity"]) if charged else 0,
        currency=price["currency"],
        start=item["current_period_start"],
        end=item["current_period_end"],
        quantity=item["quantity"],
        description=_described(work, price, item["quantity"]) if charged else _free(work, price),
        price=price,
        subscription=subscription["id"],
        item=item["id"],
    )


def used_until_now(work: state.Work, subscription: Json, item: Json, now: int) -> Charge:
    """Return the charge for the usage reported until now, this second included; later reports do not change it."""
    window = usage.Window(min(item["_usage_from"], now), now + 1, item["_usage_after"])
    return _used(work, subscription, item, window, now)


def used(work: state.Work, subscription: Json, item: Json, end: int) -> Charge:
    """Return the charge for usage in a period that is over, counted again until the invoice is finalised."""
    window = usage.Window(min(item["_usage_from"], end), end, item["_usage_after"])
    return dataclasses.replace(_used(work, subscription, item, window, end), metered_after=window.after)


def _used(work: state.Work, subscription: Json, item: Json, window: usage.Window, end: int) -> Charge:
    price = work.get("price", item["price"])
    units = usage.billed_units(work, price, subscription["customer"], window)
    return Charge(
        amount=amounts.of_units(price["unit_amount_decimal"], units),
        currency=price["currency"],
        start=window.start,
        end=end,
        quantity=units,
        description=_described(work, price, units),
        price=price,
        subscription=subscription["id"],
        item=item["id"],
    )


def counted_again(work: state.Work, line: Json, customer: str) -> Json:
    """Return a metered line of a draft with the present usage, any other line unchanged."""
    if line["_metered_after"] is None:
        return line
    price = work.get("price", line["pricing"]["price_details"]["price"])
    window = usage.Window(line["period"]["start"], line["period"]["end"], line["_metered_after"])
    units = usage.billed_units(work, price, customer, window)
    amount = amounts.of_units(price["unit_amount_decimal"], units)
    described = _described(work, price, units)
    return {**line, "amount": amount, "subtotal": amount, "quantity": units, "description": described}


def shown(charge: Charge, invoice_id: str) -> Json:
    """Return the line in the API's form."""
    details: dict[str, Any] = {
        "invoice_item": charge.invoice_item,
        "proration": charge.proration,
        "proration_details": {"credited_items": None} if charge.proration else None,
        "subscription": charge.subscription,
    }
    from_item = charge.item is not None
    return {
        "id": state.new_id("il"),
        "object": "line_item",
        "amount": charge.amount,
        "currency": charge.currency,
        "description": charge.description,
        "discount_amounts": [],
        "discountable": not charge.proration,
        "discounts": [],
        "invoice": invoice_id,
        "livemode": False,
        "metadata": charge.metadata,
        "parent": {
            "invoice_item_details": None if from_item else details,
            "subscription_item_details": {**details, "subscription_item": charge.item} if from_item else None,
            "type": "subscription_item_details" if from_item else "invoice_item_details",
        },
        "period": {"end": charge.end, "start": charge.start},
        "pretax_credit_amounts": [],
        "pricing": pricing(charge.price, charge.amount),
        "quantity": charge.quantity,
        "quantity_decimal": str(charge.quantity),
        "subscription": charge.subscription,
        "subtotal": charge.amount,
        "taxes": [],
        "_metered_after": charge.metered_after,
    }


def invoice_item_of(line: Json) -> str | None:
    """Return the id of the invoice item that a line shows; None if there is none."""
    found: str | None = line["parent"][line["parent"]["type"]]["invoice_item"]
    return found


def pricing(price: Json | None, amount: int) -> Json:
    """Return the field `pricing` of a line or invoice item: the price, or the amount if there is no price."""
    if price is None:
        return {"price_details": None, "type": "price_details", "unit_amount_decimal": str(amount)}
    return {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": price["unit_amount_decimal"],
    }


def named(work: state.Work, price: Json) -> str:
    """Return a price's name for people."""
    return str(price["nickname"] or work.get("product", price["product"])["name"])


def _described(work: state.Work, price: Json, quantity: int) -> str:
    return f"{quantity} × {named(work, price)}"  # noqa: RUF001 - as Stripe writes it


def _free(work: state.Work, price: Json) -> str:
    return f"Free trial for {named(work, price)}"
