"""Checkout sessions: the API creates them, a customer pays or leaves them in a browser (see `pages`)."""

from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms, rendering, rules
from stripe_sandbox.api.context import Context
from stripe_sandbox.customers import customers, payment_methods
from stripe_sandbox.invoices import amounts
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import beginnings, subscription_items, trials

EXPIRES_SECONDS_MIN = 30 * 60
EXPIRES_SECONDS_MAX = 24 * 3600
LINES_MAX = 20


def create(context: Context, params: forms.Params) -> Json:
    """Answer POST /v1/checkout/sessions, for subscriptions only."""
    _check_alone(context, params)
    if "customer" in params:
        customers.existing(context, params["customer"], param="customer")
    return context.show(opened(context, params), params)


def opened(context: Context, params: forms.Params, payment_link: str | None = None) -> Json:
    """Store a session for checked parameters; a payment link's session may have no success URL."""
    lines = _lines(context, params["line_items"])
    session_id = state.new_id("cs_test")
    data = params.get("subscription_data", {})
    total = 0 if _trial_end(context, data) else sum(_amount(line) for line in lines)
    items = [_line_item(context, line) for line in lines]
    session = {
        "id": session_id,
        "object": "checkout.session",
        "allow_promotion_codes": None,
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": None,
        "cancel_url": params.get("cancel_url"),
        "client_reference_id": params.get("client_reference_id"),
        "client_secret": None,
        "created": context.now,
        "currency": lines[0].price["currency"],
        "custom_fields": [],
        "customer": params.get("customer"),
        "customer_creation": None if "customer" in params else "always",
        "customer_details": None,
        "customer_email": params.get("customer_email"),
        "discounts": [],
        "expires_at": params.get("expires_at", context.now + EXPIRES_SECONDS_MAX),
        "invoice": None,
        "line_items": rendering.listed(items, f"/v1/checkout/sessions/{session_id}/line_items"),
        "livemode": False,
        "locale": None,
        "metadata": rules.merged_metadata({}, params.get("metadata")),
        "mode": "subscription",
        "payment_intent": None,
        "payment_link": payment_link,
        "payment_method_collection": params.get("payment_method_collection", "always"),
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "setup_intent": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": None,
        "subscription": None,
        "success_url": params["success_url"],
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{context.settings.public_url}/checkout/{session_id}",
        # The parameters of the future subscription. Stripe has no such field, so answers leave it out.
        "subscription_data": data,
    }
    return context.work.insert("checkout.session", session)


def line_items(context: Context, given: list[forms.Params]) -> list[Json]:
    """Return line items in the API's form; raises as `create` does."""
    return [_line_item(context, line) for line in _lines(context, given)]


def _lines(context: Context, given: list[forms.Params]) -> list[subscription_items.Line]:
    """Return the lines, checked one by one and together."""
    lines = []
    for index, each in enumerate(given):
        line = subscription_items.checked_line(context, each, f"line_items[{index}]")
        if line.quantity is not None and "quantity" not in each:
            param = f"line_items[{index}][quantity]"
            raise errors.Refused(f"Missing required param: {param}.", param=param, code="parameter_missing")
        if line.quantity == 0:
            raise errors.InvalidParameter("Quantity must be at least 1.", param=f"line_items[{index}][quantity]")
        lines.append(line)
    _check_together(lines)
    return lines


def _line_item(context: Context, line: subscription_items.Line) -> Json:
    amount = _amount(line)
    return {
        "id": state.new_id("li"),
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": line.price["currency"],
        "description": context.work.get("product", line.price["product"])["name"],
        "price": line.price["id"],
        "quantity": line.quantity,
    }


def _amount(line: subscription_items.Line) -> int:
    """Return the minor units that a line costs in advance; 0 for a metered price."""
    return amounts.of_units(line.price["unit_amount_decimal"], line.quantity or 0)


def _trial_end(context: Context, data: forms.Params) -> int | None:
    return trials.chosen_end(context, data, "subscription_data")


def _check_alone(context: Context, params: forms.Params) -> None:
    """Check the parameters that do not depend on stored objects."""
    for required in ("mode", "success_url", "line_items"):
        if not params.get(required):
            raise errors.InvalidParameter(
                f"Missing required param: {required}.", param=required, code="parameter_missing"
            )
    if params["mode"] != "subscription":
        raise errors.InvalidParameter(
            "The sandbox knows mode=subscription only.", param="mode", code="sandbox_unsupported"
        )
    if "customer" in params and "customer_email" in params:
        raise errors.InvalidParameter(
            "You may only specify one of these parameters: customer, customer_email.", param="customer_email"
        )
    if len(params["line_items"]) > LINES_MAX:
        raise errors.InvalidParameter(f"At most {LINES_MAX} line items.", param="line_items")
    for index, line in enumerate(params["line_items"]):
        if "price" not in line:
            param = f"line_items[{index}][price]"
            raise errors.InvalidParameter(f"Missing required param: {param}.", param=param, code="parameter_missing")
    earliest, latest = context.now + EXPIRES_SECONDS_MIN, context.now + EXPIRES_SECONDS_MAX
    # A tolerance of a minute, for a caller that computed a bound just before the request.
    if not earliest - 60 <= params.get("expires_at", latest) <= latest + 60:
        raise errors.InvalidParameter("expires_at must lie between 30 minutes and 24 hours ahead.", param="expires_at")
    data = params.get("subscription_data", {})
    if data.get("billing_mode", {"type": "flexible"})["type"] != "flexible":
        raise errors.InvalidParameter(
            "The sandbox knows flexible billing only.",
            param="subscription_data[billing_mode][type]",
            code="sandbox_unsupported",
        )
    _trial_end(context, data)


def _check_together(lines: list[subscription_items.Line]) -> None:
    """Check that the prices fit together: interval, currency, no price twice."""
    recurring = [line.price["recurring"] for line in lines if line.price["recurring"]]
    if not recurring:
        raise errors.Refused("You must provide at least one recurring price in subscription mode.", param="line_items")
    if len({(each["interval"], each["interval_count"]) for each in recurring}) > 1:
        raise errors.Refused("All recurring prices of a checkout must have the same interval.", param="line_items")
    if len({line.price["currency"] for line in lines}) > 1:
        raise errors.Refused("All prices of a checkout must have the same currency.", param="line_items")
    if len({line.price["id"] for line in lines}) < len(lines):
        raise errors.Refused("Each price may occur in one line item only.", param="line_items")


def current(context: Context, session_id: str) -> Json:
    """Return the session; an open session whose time is over expires first."""
    session = context.work.get("checkout.session", session_id)
    if session["status"] == "open" and session["expires_at"] <= context.now:
        return _expire(context, session)
    return session


def _expire(context: Context, session: Json) -> Json:
    expired = context.update(session, {"status": "expired", "url": None}, None)
    context.emit("checkout.session.expired", expired)
    return expired


def retrieve(context: Context, params: forms.Params, session_id: str) -> Json:
    """Answer GET /v1/checkout/sessions/{id}."""
    return context.show(current(context, session_id), params)


def list_line_items(context: Context, params: forms.Params, session_id: str) -> Json:
    """Answer GET /v1/checkout/sessions/{id}/line_items: all on one page, because a session has few."""
    del params
    items = context.work.get("checkout.session", session_id)["line_items"]["data"]
    url = f"/v1/checkout/sessions/{session_id}/line_items"
    return rendering.listed([rendering.render(context.work, item) for item in items], url)


def list_all(context: Context, params: forms.Params) -> Json:
    """Answer GET /v1/checkout/sessions."""
    expire_overdue(context)
    where: dict[str, Any] = {name: params[name] for name in ("customer", "subscription", "status") if name in params}
    return context.show_list("checkout.session", "/v1/checkout/sessions", where, params)


def expire_overdue(context: Context) -> None:
    """Expire every open session whose time is over."""
    overdue = context.work.connection.execute(
        "SELECT id FROM objects WHERE kind = 'checkout.session' AND json_extract(body, '$.status') = 'open'"
        " AND json_extract(body, '$.expires_at') <= ?",
        (context.now,),
    ).fetchall()
    for (session_id,) in overdue:
        current(context, session_id)


def expire(context: Context, params: forms.Params, session_id: str) -> Json:
    """Answer POST /v1/checkout/sessions/{id}/expire."""
    session = current(context, session_id)
    if session["status"] != "open":
        raise errors.Refused(
            f'Only Checkout Sessions with a status in ["open"] can be expired. This one is {session["status"]}.'
        )
    return context.show(_expire(context, session), params)


def pay(context: Context, session_id: str, card: str = payment_methods.WORKS) -> Json:
    """Pay an open session and return it; a session that is not open is returned unchanged, so a repeat is harmless.

    The card becomes the subscription's, and is attached to the customer, whose default does not change. Raises
    CardDeclined; the caller's transaction must then be rolled back.
    """
    session = current(context, session_id)
    if session["status"] != "open":
        return session
    customer = _customer(context, session)
    needs_card = session["payment_method_collection"] == "always" or session["amount_total"]
    chosen = _card(context, customer["id"], card) if needs_card else None
    lines = [
        subscription_items.Line(context.work.get("price", item["price"]), item["quantity"])
        for item in session["line_items"]["data"]
    ]
    data = session["subscription_data"]
    terms = beginnings.Terms(
        metadata=data.get("metadata", {}),
        description=data.get("description"),
        trial_end=_trial_end(context, data),
        without_card=trials.without_card(data) or "create_invoice",
        default_payment_method=chosen,
        payment_behavior="error_if_incomplete",
        confirmed=True,
    )
    subscription = beginnings.begin(context, customer, lines, terms)
    invoice = context.work.find("invoice", subscription["latest_invoice"] or "")
    changes = {
        "customer": customer["id"],
        "customer_details": {"email": customer["email"], "name": customer["name"], "phone": None, "tax_ids": []},
        "invoice": invoice["id"] if invoice else None,
        "payment_status": _payment_status(invoice),
        "status": "complete",
        "subscription": subscription["id"],
        "url": None,
    }
    completed = context.update(session, changes, None)
    context.emit("checkout.session.completed", completed)
    return completed


def _payment_status(invoice: Json | None) -> str:
    """Return the payment status of a completed session; it is unpaid while a debit is on its way."""
    if invoice is None or not invoice["total"]:
        return "no_payment_required"
    return "unpaid" if invoice["status"] == "open" else "paid"


def _card(context: Context, customer_id: str, card: str) -> str:
    """Return the card that pays: the customer's default card where the page offers it and it works, else a new card."""
    on_file = payment_methods.default_of(context, customer_id)
    if on_file and card == payment_methods.WORKS and not payment_methods.can_charge(context, customer_id):
        return str(on_file["id"])
    return str(payment_methods.attach(context, customer_id, card)["id"])


def _customer(context: Context, session: Json) -> Json:
    if session["customer"]:
        return customers.existing(context, session["customer"], param="customer")
    email = session["customer_email"]
    return customers.add(context, {"email": email} if email else {})
