"""Stripe's objects and events as its API versions have written them since 2019."""

from typing import Any

CUSTOMER = "cus_ours"
PRICE = "price_pro_monthly"
METERED_PRICE = "price_pro_runs"

# A day in 2026, and a month later.
START, END = 1_790_000_000, 1_792_592_000

# Where a version has a subscription's period: on the subscription, on its items, or (in a transition) on both.
VERSIONS: dict[str, tuple[str, ...]] = {
    "2019-02-11": ("subscription",),
    "2019-12-03": ("subscription",),
    "2020-08-27": ("subscription",),
    "2022-11-15": ("subscription",),
    "2023-10-16": ("subscription",),
    "2024-06-20": ("subscription",),
    "2024-12-18.acacia": ("subscription", "item"),
    "2025-03-31.basil": ("item",),
    "2025-12-15.clover": ("item",),
    "2026-10-28.endive": ("item",),
}
OLDEST, NEWEST = min(VERSIONS), max(VERSIONS)
_BASIL = "2025-03-31"


def event(type_: str, subject: Any, version: str = NEWEST, event_id: str = "", **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    own_id = subject.get("id") if isinstance(subject, dict) else None
    return {
        "id": event_id or f"evt_{type_}_{own_id}_{version}".replace(".", "_"),
        "object": "event",
        "api_version": version,
        "created": START,
        "data": {"object": subject},
        "livemode": False,
        "pending_webhooks": 1,
        # The oldest versions have only an id.
        "request": None if version < "2017-05-25" else {"id": None, "idempotency_key": None},
        "type": type_,
        **more,
    }


def thin_event(type_: str, event_id: str, related: dict[str, str] | None = None) -> dict[str, Any]:
    told = {"id": event_id, "object": "v2.core.event", "type": type_, "livemode": False, "context": None}
    return {**told, "created": "2026-11-20T12:00:00.250Z", "reason": None, "related_object": related}


def subscription(subscription_id: str = "sub_ours", version: str = NEWEST, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    period = {"current_period_start": START, "current_period_end": END}
    places = VERSIONS[version]
    items = [
        _item(subscription_id, number, price_id, version) | (period if "item" in places else {})
        for number, price_id in enumerate((PRICE, METERED_PRICE))
    ]
    made: dict[str, Any] = {
        "id": subscription_id,
        "object": "subscription",
        "billing_cycle_anchor": START,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "collection_method": "charge_automatically",
        "created": START,
        "customer": CUSTOMER,
        "days_until_due": None,
        "ended_at": None,
        "items": {"object": "list", "data": items, "has_more": False, "url": "/v1/subscription_items"},
        "latest_invoice": "in_ours",
        "livemode": False,
        "metadata": {},
        "status": "active",
        "trial_end": None,
        "trial_start": None,
    }
    if "subscription" in places:
        made |= period
    if version < "2019-10-17":
        made |= {"billing": "charge_automatically", "start": START, "plan": items[0]["plan"], "quantity": 1}
    else:
        made |= {"start_date": START, "cancel_at": None, "pending_update": None, "schedule": None}
    if version >= _BASIL:
        made |= {"billing_mode": {"type": "flexible", "flexible": None}, "discounts": [], "trial_settings": None}
    else:
        made |= {"discount": None, "application_fee_percent": None}
    return {**made, **more}


def _item(subscription_id: str, number: int, price_id: str, version: str) -> dict[str, Any]:
    plan = {"id": price_id, "object": "plan", "active": True, "amount": 2000, "currency": "usd", "interval": "month"}
    price = {
        "id": price_id,
        "object": "price",
        "active": True,
        "currency": "usd",
        "unit_amount": 2000,
        "type": "recurring",
    }
    item: dict[str, Any] = {
        "id": f"si_{subscription_id}_{number}",
        "object": "subscription_item",
        "created": START,
        "metadata": {},
        "subscription": subscription_id,
        "plan": plan,
    }
    if price_id == PRICE:
        item["quantity"] = 1
    if version >= "2020-08-27":
        item["price"] = price
    return item


def invoice(
    invoice_id: str = "in_ours",
    version: str = NEWEST,
    *,
    lines: list[dict[str, Any]] | None = None,
    **more: Any,  # noqa: ANN401 - JSON
) -> dict[str, Any]:
    if lines is None:
        lines = [line(0, PRICE, 2000, 1, version), line(1, METERED_PRICE, 3000, 60, version)]
    made: dict[str, Any] = {
        "id": invoice_id,
        "object": "invoice",
        "amount_due": 5000,
        "amount_paid": 5000,
        "amount_remaining": 0,
        "attempt_count": 1,
        "attempted": True,
        "billing_reason": "subscription_cycle",
        "created": START,
        "currency": "usd",
        "customer": CUSTOMER,
        "due_date": None,
        "ending_balance": 0,
        "hosted_invoice_url": "https://invoice.example.com/i/1",
        "invoice_pdf": "https://pay.example.com/invoice/1/pdf",
        "lines": {"object": "list", "data": lines, "has_more": False, "url": f"/v1/invoices/{invoice_id}/lines"},
        "livemode": False,
        "next_payment_attempt": None,
        "number": "A1B2-0001",
        "period_end": END,
        "period_start": START,
        "status": "paid",
        "status_transitions": {"finalized_at": START + 3600, "paid_at": START + 3700, "voided_at": None},
        "subtotal": 5000,
        "total": 5000,
    }
    if version < "2019-03-14":
        made["date"] = made.pop("created")
    if version < _BASIL:
        made |= {"subscription": "sub_ours", "paid": True, "charge": "ch_1", "payment_intent": "pi_1", "tax": None}
    else:
        details = {"metadata": {}, "subscription": "sub_ours"}
        parent = {"type": "subscription_details", "quote_details": None, "subscription_details": details}
        made |= {"parent": parent, "amount_overpaid": 0, "total_taxes": []}
    return {**made, **more}


def line(number: int, price_id: str, amount: int, quantity: int, version: str = NEWEST) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": f"il_{number:04}",
        "object": "line_item",
        "amount": amount,
        "currency": "usd",
        "description": f"{quantity} x",
        "period": {"start": START, "end": END},
        "quantity": quantity,
    }
    if version >= _BASIL:
        details = {"price": price_id, "product": "prod_pro"}
        parent = {"subscription": "sub_ours", "proration": number % 2 == 1, "subscription_item": "si_1"}
        return made | {
            "pricing": {"type": "price_details", "price_details": details, "unit_amount_decimal": "50"},
            "parent": {"type": "subscription_item_details", "subscription_item_details": parent},
        }
    made |= {"type": "subscription", "proration": number % 2 == 1, "subscription": "sub_ours", "plan": {"id": price_id}}
    return made | ({"price": {"id": price_id, "object": "price"}} if version >= "2020-08-27" else {})
