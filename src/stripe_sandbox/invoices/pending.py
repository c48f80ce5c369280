"""Stores the pending items of a customer's next invoice: items made by the API, and prorations after a change."""

from stripe_sandbox import state
from stripe_sandbox.api.context import Context
from stripe_sandbox.invoices import lines
from stripe_sandbox.state import Json

PENDING_MAX = 250
"""Stripe's bound on the items of one invoice."""


def add(context: Context, customer_id: str, charge: lines.Charge) -> Json:
    """Store a charge for the next invoice of the customer or its subscription."""
    parent = {
        "subscription_details": {"subscription": charge.subscription, "subscription_item": charge.item},
        "type": "subscription_details",
    }
    item = {
        "id": state.new_id("ii"),
        "object": "invoiceitem",
        "amount": charge.amount,
        "created": context.now,
        "currency": charge.currency,
        "customer": customer_id,
        "customer_account": None,
        "date": context.now,
        "description": charge.description,
        "discountable": not charge.proration,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": charge.metadata,
        "net_amount": charge.amount,
        "parent": parent if charge.subscription else None,
        "period": {"end": charge.end, "start": charge.start},
        "pricing": lines.pricing(charge.price, charge.amount),
        "proration": charge.proration,
        "proration_details": None,
        "quantity": charge.quantity,
        "quantity_decimal": str(charge.quantity),
        "tax_rates": [],
        "test_clock": None,
    }
    return context.add("invoiceitem", item, "invoiceitem.created")


def waiting(context: Context, customer_id: str, subscription_id: str | None) -> list[Json]:
    """Return the pending items for the next invoice of a subscription (None: of the customer), the oldest first."""
    found, _ = context.work.select("invoiceitem", {"customer": customer_id, "invoice": None}, state.Page(PENDING_MAX))
    items = [item for item in found if _subscription_of(item) in {None, subscription_id}]
    return items[::-1]


def charge_of(context: Context, item: Json) -> lines.Charge:
    """Return an item's charge, which becomes a line."""
    details = item["pricing"]["price_details"]
    parent = (item["parent"] or {}).get("subscription_details") or {}
    return lines.Charge(
        amount=item["amount"],
        currency=item["currency"],
        start=item["period"]["start"],
        end=item["period"]["end"],
        quantity=item["quantity"],
        description=item["description"],
        price=context.work.get("price", details["price"]) if details else None,
        subscription=parent.get("subscription"),
        item=parent.get("subscription_item"),
        invoice_item=item["id"],
        proration=item["proration"],
        metadata=item["metadata"],
    )


def _subscription_of(item: Json) -> str | None:
    found: str | None = ((item["parent"] or {}).get("subscription_details") or {}).get("subscription")
    return found


def on_invoice(context: Context, item_id: str, invoice_id: str | None) -> None:
    """Store the invoice that contains an item; None: the item is pending again."""
    context.work.replace({**context.work.get("invoiceitem", item_id), "invoice": invoice_id})


def delete(context: Context, item: Json) -> Json:
    """Delete an item that is on no invoice."""
    context.emit("invoiceitem.deleted", item)
    context.work.delete(item["id"])
    return {"id": item["id"], "object": "invoiceitem", "deleted": True}
