"""Reads the phases of a subscription schedule, and moves the schedule from phase to phase."""

from typing import Any

from stripe_sandbox import errors, state
from stripe_sandbox.api import forms
from stripe_sandbox.api.context import Context
from stripe_sandbox.state import Json
from stripe_sandbox.subscriptions import periods, subscription_items

PHASES_MAX = 10


def from_subscription(subscription: Json) -> Json:
    """Return a subscription's present state as a phase, which ends with the period or the subscription."""
    items = subscription["items"]["data"]
    starts, ends = zip(*((item["current_period_start"], item["current_period_end"]) for item in items), strict=True)
    return made(
        start=min(starts),
        end=subscription["cancel_at"] or min(ends),
        items=[_item(item["price"], item.get("quantity")) for item in items],
        trial_end=subscription["trial_end"] if subscription["status"] == "trialing" else None,
        discounts=[_discount({"discount": each}) for each in subscription["discounts"]],
    )


def _discount(given: forms.Params) -> Json:
    return {name: given.get(name) for name in ("coupon", "discount", "promotion_code")}


def made(*, start: int, end: int, items: list[Json], **more: Any) -> Json:  # noqa: ANN401 - fields of a phase
    """Return a phase in the API's form."""
    return {
        "add_invoice_items": [],
        "application_fee_percent": None,
        "automatic_tax": None,
        "billing_cycle_anchor": None,
        "billing_thresholds": None,
        "collection_method": None,
        "currency": "usd",
        "default_payment_method": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "end_date": end,
        "invoice_settings": None,
        "items": items,
        "metadata": {},
        "on_behalf_of": None,
        "proration_behavior": "create_prorations",
        "start_date": start,
        "transfer_data": None,
        "trial_end": None,
        **more,
    }


def _item(price_id: str, quantity: int | None) -> Json:
    item: Json = {"billing_thresholds": None, "discounts": [], "metadata": {}, "price": price_id, "tax_rates": []}
    return item if quantity is None else {**item, "quantity": quantity}


def read(context: Context, schedule: Json, given: list[forms.Params]) -> list[Json]:
    """Return the requested phases in their order; the first is the present phase, whose items must not change."""
    if not 1 <= len(given) <= PHASES_MAX:
        raise errors.InvalidParameter(f"A schedule has 1 to {PHASES_MAX} phases.", param="phases")
    present = current(schedule)
    read_phases: list[Json] = []
    for index, each in enumerate(given):
        param = f"phases[{index}]"
        start = read_phases[-1]["end_date"] if read_phases else present["start_date"]
        if each.get("start_date", start) != start:
            raise errors.Refused(
                "You can not modify the start date of the current phase."
                if index == 0
                else "A phase begins when the one before it ends.",
                param=f"{param}[start_date]",
            )
        items = [_read_item(context, item, f"{param}[items][{at}]") for at, item in enumerate(each["items"])]
        if len({item["price"] for item in items}) < len(items) or not items:
            raise errors.Refused("A phase needs items, and each price once only.", param=f"{param}[items]")
        end = _end(context, each, start, items, param)
        if end <= max(start, context.now if index == 0 else start):
            raise errors.InvalidParameter(
                "A phase must end after its start, and not in the past.", param=f"{param}[end_date]"
            )
        read_phases.append(
            made(
                start=start,
                end=end,
                items=items,
                discounts=[_discount(one) for one in each.get("discounts") or []],
                metadata=each.get("metadata", {}),
                proration_behavior=each.get("proration_behavior", "create_prorations"),
                trial_end=each.get("trial_end"),
                currency=present["currency"],
            )
        )
    if _sold(read_phases[0]) != _sold(present):
        raise errors.Refused(
            "The sandbox changes the items of the current phase only by an update of the subscription.",
            param="phases[0][items]",
            code="sandbox_unsupported",
        )
    return read_phases


def _sold(phase: Json) -> dict[str, int | None]:
    return {item["price"]: item.get("quantity") for item in phase["items"]}


def _read_item(context: Context, given: forms.Params, param: str) -> Json:
    if "price" not in given:
        raise errors.InvalidParameter(
            f"Missing required param: {param}[price].", param=f"{param}[price]", code="parameter_missing"
        )
    # An inactive price is allowed, because the subscription may already have it.
    line = subscription_items.checked_line(context, given, param, {"price": given["price"], "quantity": 1})
    return _item(line.price["id"], line.quantity)


def _end(context: Context, given: forms.Params, start: int, items: list[Json], param: str) -> int:
    if "end_date" in given and "duration" in given:
        raise errors.InvalidParameter("Give either end_date or duration.", param=f"{param}[duration]")
    if "end_date" in given:
        return context.now if given["end_date"] == "now" else int(given["end_date"])
    duration = given.get("duration")
    recurring = context.work.get("price", items[0]["price"])["recurring"]
    if duration:
        recurring = {"interval": duration["interval"], "interval_count": duration.get("interval_count", 1)}
    return periods.step(start, recurring, 1)


def current(schedule: Json) -> Json:
    """Return the present phase of a schedule."""
    start = schedule["current_phase"]["start_date"]
    found: Json = next(phase for phase in schedule["phases"] if phase["start_date"] == start)
    return found


def follow(context: Context, schedule_id: str, items: list[Json]) -> None:
    """Store the subscription's changed items in the present phase."""
    schedule = context.work.get("subscription_schedule", schedule_id)
    present = current(schedule)
    now_sold = {**present, "items": [_item(item["price"], item.get("quantity")) for item in items]}
    changed = [now_sold if phase["start_date"] == present["start_date"] else phase for phase in schedule["phases"]]
    context.update(schedule, {"phases": changed}, "subscription_schedule.updated")


def enter_next(context: Context, schedule: Json) -> Json | None:
    """Move to the next phase and return it. After the last phase the schedule ends, and None is returned."""
    position = schedule["phases"].index(current(schedule)) + 1
    if position < len(schedule["phases"]):
        phase: Json = schedule["phases"][position]
        where = {"end_date": phase["end_date"], "start_date": phase["start_date"]}
        context.update(schedule, {"current_phase": where}, "subscription_schedule.updated")
        return phase
    if schedule["end_behavior"] == "cancel":
        over = {"status": "completed", "completed_at": context.now, "current_phase": None}
        context.emit("subscription_schedule.completed", context.update(schedule, over, None))
    else:
        release(context, schedule)
    return None


def release(context: Context, schedule: Json) -> Json:
    """Release the subscription from the schedule. The caller has to change the subscription's own fields."""
    changes = {
        "status": "released",
        "released_at": context.now,
        "released_subscription": schedule["subscription"],
        "subscription": None,
        "current_phase": None,
    }
    released = context.update(schedule, changes, None)
    context.emit("subscription_schedule.released", released)
    return released


def add(context: Context, subscription: Json) -> Json:
    """Store a new schedule for a subscription without a schedule."""
    phase = {**from_subscription(subscription), "currency": subscription["currency"]}
    schedule = {
        "id": state.new_id("sub_sched"),
        "object": "subscription_schedule",
        "application": None,
        "billing_mode": subscription["billing_mode"],
        "canceled_at": None,
        "completed_at": None,
        "created": context.now,
        "current_phase": {"end_date": phase["end_date"], "start_date": phase["start_date"]},
        "customer": subscription["customer"],
        "customer_account": None,
        "default_settings": {
            "application_fee_percent": None,
            "billing_cycle_anchor": "automatic",
            "billing_thresholds": None,
            "collection_method": "charge_automatically",
            "default_payment_method": subscription["default_payment_method"],
            "description": None,
            "invoice_settings": {"account_tax_ids": None, "days_until_due": None, "issuer": {"type": "self"}},
            "on_behalf_of": None,
            "transfer_data": None,
        },
        "end_behavior": "cancel" if subscription["cancel_at"] else "release",
        "livemode": False,
        "metadata": {},
        "phases": [phase],
        "released_at": None,
        "released_subscription": None,
        "status": "active",
        "subscription": subscription["id"],
        "test_clock": None,
    }
    context.work.replace({**subscription, "schedule": schedule["id"], "_phase_end": phase["end_date"]})
    return context.add("subscription_schedule", schedule, "subscription_schedule.created")
