"""Acts of a person in the dashboard: the lives of subscriptions and customers."""

from datetime import timedelta
from urllib.parse import urlsplit

from billing_svc.platform.audit import store as audit_store
from billing_svc.subscriptions.records import end_duplicate
from tests.faults.walk.walker import ACCOUNT, SUBSCRIPTIONS, Act, Walker

PAUSES = ("void", "keep_as_draft", "mark_uncollectible")
SCHEDULES = "/v1/subscription_schedules"


async def _update(walker: Walker, **params: object) -> None:
    path = await walker.path()
    if path is not None:
        await walker.stripe("POST", path, **params)


async def _subscribe(walker: Walker, plan: str, **more: object) -> None:
    customer = await walker.customer()
    if customer is not None:
        base = walker.shop.prices["year_yearly" if plan == "year" else f"{plan}_monthly"]
        prices = [base, *walker.shop.metered(plan)]
        items = {f"items[{number}][price]": price for number, price in enumerate(prices)}
        walker.may_bill_twice = True
        await walker.stripe("POST", SUBSCRIPTIONS, customer=customer, **items, **more)


async def subscribe_a_second_time(walker: Walker) -> None:
    """Make a subscription of the account's plan."""
    plan = walker.expected.plan(await walker.subscriptions())
    await _subscribe(walker, "small" if plan == "free" else plan)


async def subscribe_to_another_plan(walker: Walker) -> None:
    """Make a subscription of some plan."""
    await _subscribe(walker, walker.draw.choice(("small", "big", "team")))


async def subscribe_with_a_trial(walker: Walker) -> None:
    """Make a subscription with a trial."""
    await _subscribe(walker, "tried", trial_period_days=walker.draw.choice((3, 40)))


async def subscribe_to_another_product(walker: Walker) -> None:
    """Make another product's subscription for the account's customer."""
    customer = await walker.customer()
    if customer is not None:
        product = await walker.stripe("POST", "/v1/products", name="Another team's product")
        price = {"unit_amount": 1100, "currency": "usd", "recurring[interval]": "month", "product": product["id"]}
        made = await walker.stripe("POST", "/v1/prices", **price)
        await walker.stripe("POST", SUBSCRIPTIONS, customer=customer, **{"items[0][price]": made["id"]})


async def give_a_trial(walker: Walker) -> None:
    """Add a trial, or move its end."""
    end = walker.now + timedelta(days=walker.draw.choice((1, 6, 20, 50)))
    await _update(walker, trial_end=int(end.timestamp()))


async def extend_a_trial(walker: Walker) -> None:
    """Move the end of a trial under way."""
    trials = [one for one in await walker.living() if one["status"] == "trialing"]
    if trials:
        await walker.stripe("POST", f"{SUBSCRIPTIONS}/{trials[0]['id']}", trial_end=trials[0]["trial_end"] + 9 * 86_400)


async def end_a_trial(walker: Walker) -> None:
    """End the trial."""
    await _update(walker, trial_end="now")


async def reset_the_anchor(walker: Walker) -> None:
    """Begin a new billing period."""
    behavior = walker.draw.choice(("none", "create_prorations"))
    await _update(walker, proration_behavior=behavior, **{"billing_cycle_anchor[type]": "now"})


async def pause_the_collection(walker: Walker) -> None:
    """Pause the collection of the subscription's invoices."""
    await _update(walker, **{"pause_collection[behavior]": walker.draw.choice(PAUSES)})


async def resume_the_collection(walker: Walker) -> None:
    """Collect again."""
    await _update(walker, pause_collection="")


async def pause_the_subscription(walker: Walker) -> None:
    """Pause the subscription itself."""
    path = await walker.path()
    if path is not None:
        await walker.stripe("POST", f"{path}/pause", type="subscription")


async def resume_the_subscription(walker: Walker) -> None:
    """Resume a paused subscription."""
    paused = [one for one in await walker.living() if one["status"] == "paused"]
    if paused:
        anchor = walker.draw.choice(("now", "unchanged"))
        path = f"{SUBSCRIPTIONS}/{paused[0]['id']}/resume"
        await walker.stripe("POST", path, **{"billing_cycle_anchor[type]": anchor})


async def schedule_as_sales_do(walker: Walker) -> None:
    """Attach a schedule of two phases, the second with a discount."""
    found = await walker.a_subscription()
    if found is None:
        return
    made = await walker.stripe("POST", SCHEDULES, from_subscription=found["id"])
    if not made:
        return
    coupon = await walker.stripe("POST", "/v1/coupons", percent_off=25, duration="forever")
    (phase,) = made["phases"]
    items = {f"items[{n}][price]": one["price"] for n, one in enumerate(phase["items"])}
    fields: dict[str, object] = {"end_behavior": walker.draw.choice(("release", "release", "cancel"))}
    bounds = {"start_date": phase["start_date"], "end_date": phase["end_date"]}
    fields |= {f"phases[0][{name}]": value for name, value in bounds.items()}
    fields |= {f"phases[0][{_inner(name)}": value for name, value in items.items()}
    fields |= {f"phases[1][{_inner(name)}": value for name, value in items.items()}
    fields |= {"phases[1][duration][interval]": "month", "phases[1][discounts][0][coupon]": coupon["id"]}
    await walker.stripe("POST", f"{SCHEDULES}/{made['id']}", **fields)


def _inner(name: str) -> str:
    """Return a field's name as a part of another field."""
    head, bracket, rest = name.partition("[")
    return f"{head}]{bracket}{rest}"


async def release_a_schedule(walker: Walker) -> None:
    """Release the schedule of a subscription."""
    for one in await walker.living():
        if one["schedule"]:
            await walker.stripe("POST", f"{SCHEDULES}/{one['schedule']}/release")


async def cancel_at_once(walker: Walker) -> None:
    """Cancel now, with a final invoice or without."""
    path = await walker.path()
    if path is not None:
        invoice = walker.draw.choice(("true", "false"))
        await walker.stripe("DELETE", path, invoice_now=invoice, prorate=walker.draw.choice(("true", "false")))


async def cancel_at_the_periods_end(walker: Walker) -> None:
    """Cancel at the end of the period."""
    await _update(walker, cancel_at_period_end="true")


async def cancel_at_a_date(walker: Walker) -> None:
    """Cancel at a date."""
    at = walker.now + timedelta(days=walker.draw.choice((1, 11, 40)))
    await _update(walker, cancel_at=int(at.timestamp()))


async def undo_a_cancellation(walker: Walker) -> None:
    """Undo the cancellation."""
    found = await walker.a_subscription()
    if found is not None:
        undone = {"cancel_at_period_end": "false"} if found["cancel_at_period_end"] else {"cancel_at": ""}
        await walker.stripe("POST", f"{SUBSCRIPTIONS}/{found['id']}", **undone)


async def delete_the_customer(walker: Walker) -> None:
    """Delete the customer."""
    customer = await walker.customer()
    if customer is not None:
        walker.deleted_customers.add(customer)
        await walker.stripe("DELETE", f"/v1/customers/{customer}")


async def end_a_duplicate(walker: Walker) -> None:
    """End either of two subscriptions: `billing-svc account end-subscription`."""
    found = await walker.a_subscription()
    if found is not None:
        origin, now = audit_store.Origin("operator:test"), walker.now
        why = await walker.ledger.world.billing.transactions.run(
            lambda conn: end_duplicate.end(conn, ACCOUNT, found["id"], origin, now)
        )
        walker.note(f"account end-subscription {ACCOUNT} {found['id']} {why}")


async def sell_by_a_payment_link(walker: Walker) -> None:
    """Sell a plan to a stranger by a payment link."""
    link = await walker.stripe(
        "POST",
        "/v1/payment_links",
        **{"line_items[0][price]": walker.shop.prices["small_monthly"], "line_items[0][quantity]": 1},
    )
    if link:
        page = await walker.ledger.world.sandbox.http.get(urlsplit(link["url"]).path, follow_redirects=True)
        await walker.press(f"{str(page.url).rstrip('/')}/pay")


ACTS: tuple[tuple[Act, int], ...] = (
    (subscribe_a_second_time, 1),
    (subscribe_to_another_plan, 1),
    (subscribe_with_a_trial, 1),
    (subscribe_to_another_product, 1),
    (give_a_trial, 2),
    (extend_a_trial, 2),
    (end_a_trial, 2),
    (reset_the_anchor, 2),
    (pause_the_collection, 3),
    (resume_the_collection, 3),
    (pause_the_subscription, 2),
    (resume_the_subscription, 3),
    (schedule_as_sales_do, 2),
    (release_a_schedule, 1),
    (cancel_at_once, 2),
    (cancel_at_the_periods_end, 1),
    (cancel_at_a_date, 1),
    (undo_a_cancellation, 2),
    (delete_the_customer, 1),
    (end_a_duplicate, 2),
    (sell_by_a_payment_link, 1),
)
