"""All events of a subscription's life, in any order and several times: the stored row ends as the sandbox's."""

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from billing.v1 import invoice_pb2, subscription_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.sandboxed import World

SUBSCRIPTIONS = "/v1/subscriptions"
DAY = timedelta(days=1)

Tick = Callable[[], Awaitable[None]]


@pytest.fixture
def catalog_name() -> str:
    return "orgs"


async def nothing() -> None:
    pass


async def live(world: World, tick: Tick) -> str:
    """Trial, payment failed, past due, paid, plan changed, cancellation scheduled, over. Returns the subscription."""
    subscription_id = await world.subscribe(plan="starter", quantity=2)
    path = f"{SUBSCRIPTIONS}/{subscription_id}"
    data = await world.sandbox.call("GET", path)
    await tick()

    async def card(choice: str) -> None:
        await world.sandbox.control("POST", "cards", {"customer": data["customer"], "card": choice})
        await tick()

    async def advance(by: timedelta) -> None:
        await world.advance(by, tick, deliver=False)

    assert data["status"] == "trialing"
    await advance(15 * DAY)
    await card("declines")
    await advance(31 * DAY)
    assert (await world.sandbox.call("GET", path))["status"] == "past_due"
    await card("works")
    await advance(8 * DAY)
    assert (await world.sandbox.call("GET", path))["status"] == "active"
    item = (await world.sandbox.call("GET", path))["items"]["data"][0]
    (team,) = await world.rows(
        tables.stripe_prices, tables.stripe_prices.c.plan == "team", tables.stripe_prices.c.price == "monthly"
    )
    changed = {"items[0][id]": item["id"], "items[0][price]": team.price_id, "items[0][quantity]": 5}
    await world.sandbox.call("POST", path, **changed, proration_behavior="always_invoice")
    await tick()
    await world.sandbox.call("POST", path, cancel_at_period_end="true")
    await tick()
    await advance(40 * DAY)
    assert (await world.sandbox.call("GET", path))["status"] == "canceled"
    return subscription_id


async def assert_as_in_the_sandbox(world: World, subscription_id: str) -> None:
    data = await world.sandbox.call("GET", f"{SUBSCRIPTIONS}/{subscription_id}")
    (row,) = await world.rows(tables.subscriptions)
    item = data["items"]["data"][0]
    assert (row.subscription_id, row.status, row.quantity) == (subscription_id, data["status"], item["quantity"])
    assert [None if at is None else int(at.timestamp()) for at in (row.ended_at, row.cancel_at, row.trial_end)] == [
        data["ended_at"],
        data["cancel_at"],
        data["trial_end"],
    ]
    assert int(row.billing_period_end.timestamp()) == item["current_period_end"]
    assert row.cancel_at_period_end == data["cancel_at_period_end"]
    (price,) = await world.rows(tables.stripe_prices, tables.stripe_prices.c.price_id == item["price"]["id"])
    assert (row.plan, row.price) == (price.plan, price.price)
    request = subscription_pb2.ListInvoicesRequest(account_id="org_1", page_size=500)
    told = (await world.billing.subscriptions.ListInvoices(request)).invoices
    at_stripe = await world.sandbox.all("/v1/invoices", customer=data["customer"])
    assert {one.invoice_id: _told(one) for one in told} == {one["id"]: _had(one) for one in at_stripe}
    assert {state for state, _ in (await world.inbox_states()).values()} <= {"applied", "ignored"}


def _told(invoice: invoice_pb2.Invoice) -> tuple[str, str, str, int, int, str]:
    return (
        invoice_pb2.InvoiceStatus.Name(invoice.status).removeprefix("INVOICE_STATUS_").lower(),
        invoice.total.amount,
        invoice.amount_paid.amount,
        len(invoice.lines),
        invoice.attempt_count,
        invoice.hosted_url,
    )


def _had(invoice: dict[str, Any]) -> tuple[str, str, str, int, int, str]:
    return (
        invoice["status"],
        f"{invoice['total'] / 100:.2f}",
        f"{invoice['amount_paid'] / 100:.2f}",
        len(invoice["lines"]["data"]),
        invoice["attempt_count"],
        invoice["hosted_invoice_url"] or "",
    )


def doubled(events: Sequence[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Return each event at least once, some also under a second id, as Stripe may deliver them."""
    found = list(events)
    for event in events:
        if rng.random() < 0.3:
            found.append(event)
        if rng.random() < 0.2:
            found.append({**event, "id": f"{event['id']}_twin"})
    return found


async def test_events_applied_all_at_once_in_any_order_end_in_what_stripe_has(world: World, database_url: str) -> None:
    subscription_id = await live(world, nothing)
    events = await world.events()
    types = {event["type"] for event in events}
    assert types >= {
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "invoice.payment_failed",
        "invoice.paid",
    }
    about = {
        event["data"]["object"].get("id") for event in events if event["type"].startswith(("customer.sub", "invoice."))
    }
    rng = random.Random(5)  # noqa: S311 - a seed
    orders = [list(events), list(reversed(events))]
    for _ in range(8):
        order = doubled(events, rng)
        rng.shuffle(order)
        orders.append(order)
    for order in orders:
        reset(database_url)
        reads = len(await world.sandbox.requests("GET", SUBSCRIPTIONS)) + len(
            await world.sandbox.requests("GET", "/v1/inv")
        )
        await world.deliver(*order)
        await world.apply_all()
        read = len(await world.sandbox.requests("GET", SUBSCRIPTIONS)) + len(
            await world.sandbox.requests("GET", "/v1/inv")
        )
        # However many events there are, each object is read once.
        assert read - reads <= len(about)
        await assert_as_in_the_sandbox(world, subscription_id)


@pytest.mark.parametrize("seed", range(6))
async def test_late_and_mixed_up_while_it_lives(world: World, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a seed
    under_way: list[tuple[int, dict[str, Any]]] = []
    known: set[str] = set()

    async def tick() -> None:
        new = [event for event in await world.events() if event["id"] not in known]
        known.update(event["id"] for event in new)
        # Each event arrives after so many steps.
        under_way.extend((rng.choice((0, 0, 1, 2, 5)), event) for event in doubled(new, rng))
        rng.shuffle(under_way)
        due = [event for steps, event in under_way if steps == 0]
        under_way[:] = [(steps - 1, event) for steps, event in under_way if steps]
        await world.deliver(*due)
        if rng.random() < 0.7:
            await world.inbox.apply_due()

    subscription_id = await live(world, tick)
    while under_way:
        await tick()
    await world.apply_all()
    await assert_as_in_the_sandbox(world, subscription_id)
    told = await world.subscription()
    assert (told.status, told.plan) == (subscription_pb2.STATUS_CANCELED, "solo")


def reset(database_url: str) -> None:
    """Delete all events and everything that they changed."""
    url = sa.make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE stripe_events, stripe_objects, subscriptions, invoices, audit_log")
