"""Crashes, refusals and outages in the middle of a checkout."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from billing_svc.catalog import versions
from billing_svc.customers import create_customer
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.stripe import client
from billing_svc.subscriptions.checkouts import open_checkout, store
from billing_svc.subscriptions.records import refresh_subscription
from tests.billing_svc import refusals
from tests.billing_svc.sandboxed import World

SESSIONS = "/v1/checkout/sessions"
# A first checkout creates the customer and the session. A replacement reads the page, expires it and creates a session.
FIRST_CALLS, REPLACING_CALLS = 2, 3


async def crash(world: World, order: store.CheckoutOrder, number: int, *, after: bool) -> None:
    """Run a checkout in a separate process that is killed at its n-th call to Stripe."""
    billing = world.billing
    customers = create_customer.Customers(billing.transactions, world.stripe, billing.clock)
    catalogs = versions.CatalogCache()
    refresher = refresh_subscription.Refresher(billing.transactions, catalogs, world.stripe, billing.clock)
    pages = open_checkout.Checkout(billing.transactions, catalogs, world.stripe, customers, refresher, billing.clock)
    task = asyncio.create_task(pages.open_page(order, audit_store.Origin("caller:test")))
    world.sandbox.faults.crash(number, after=after, task=lambda: task)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled(), "it ended before its n-th call"
    world.sandbox.faults.clear()
    await billing.transactions.drain()


def order(success_url: str = "https://app.example.com/paid", email: str = "") -> store.CheckoutOrder:
    return store.CheckoutOrder("org_1", "pro", "", 1, success_url, "https://app.example.com/plans", email)


async def open_sessions(world: World) -> list[dict[str, Any]]:
    return [one for one in await world.sandbox.all(SESSIONS) if one["status"] == "open"]


async def assert_repeats_are_equal(world: World) -> None:
    """Every request under a key had the parameters of the stored row, also when it was repeated."""
    sent: dict[str, list[object]] = {}
    for request in await world.sandbox.writes():
        sent.setdefault(request["idempotency_key"], []).append((request["path"], request["params"]))
    assert None not in sent
    assert all(first == other for first, *others in sent.values() for other in others)
    stored = {row.idempotency_key for row in await world.rows(tables.stripe_requests)}
    assert {key for key, requests in sent.items() if requests[0][0].startswith("/v1/c")} <= stored  # type: ignore[index]  # as above


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, FIRST_CALLS + 1))
async def test_a_first_checkout_that_crashed_is_carried_on(world: World, number: int, after: bool) -> None:  # noqa: FBT001 - pytest's way
    await crash(world, order(), number, after=after)
    assert [row.state for row in await world.rows(tables.checkouts)] == ["opening"]
    page = await world.checkout()
    assert [one["id"] for one in await world.sandbox.all(SESSIONS)] == [page.session_id]
    assert len(await world.sandbox.all("/v1/customers")) == 1
    assert [row.state for row in await world.rows(tables.checkouts)] == ["open"]
    await assert_repeats_are_equal(world)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, REPLACING_CALLS + 1))
async def test_replacing_a_page_that_crashed_is_carried_on(world: World, number: int, after: bool) -> None:  # noqa: FBT001 - pytest's way
    await world.checkout()
    other = "https://app.example.com/elsewhere"
    await crash(world, order(other), number, after=after)
    page = await world.checkout(success_url=other)
    assert [one["id"] for one in await open_sessions(world)] == [page.session_id]
    assert len(await world.sandbox.all("/v1/customers")) == 1
    await assert_repeats_are_equal(world)


async def test_another_order_carries_a_crashed_page_on_and_expires_it(world: World) -> None:
    await crash(world, order("https://app.example.com/elsewhere"), 2, after=True)
    page = await world.checkout()
    assert [one["id"] for one in await open_sessions(world)] == [page.session_id]
    assert len(await world.sandbox.all(SESSIONS)) == 2


async def test_a_crashed_page_whose_session_is_over_by_now_is_replaced(world: World) -> None:
    # The intent's result was stored, but not the page's session.
    await world.checkout()
    (session,) = await world.sandbox.all(SESSIONS)
    await world.execute(sa.update(tables.checkouts).values(state="opening", session_id=None, url=None, expires_at=None))
    await world.sandbox.call("POST", f"{SESSIONS}/{session['id']}/expire")
    page = await world.checkout()
    assert [one["id"] for one in await open_sessions(world)] == [page.session_id]
    # The same for a session that has to be looked up: Stripe returns it without its URL.
    await world.execute(sa.update(tables.checkouts).where(tables.checkouts.c.state == "open").values(state="opening"))
    await world.sandbox.pay(page.url)
    requests = tables.stripe_requests
    await world.execute(
        sa.update(requests)
        .where(requests.c.purpose.like("checkout:%"))
        .values(state="open", closed_at=None, result=None, answered_500=True)
    )
    await world.execute(sa.update(tables.checkouts).where(tables.checkouts.c.state == "opening").values(url=None))
    assert (await refusals.refused(world.checkout())).reason == "ALREADY_SUBSCRIBED"


@pytest.mark.parametrize("happened", [False, True])
@pytest.mark.parametrize("path", ["/v1/customers", SESSIONS])
async def test_after_a_stored_500_stripe_is_asked_before_a_new_key_is_used(
    world: World,
    path: str,
    happened: bool,  # noqa: FBT001 - pytest's way
) -> None:
    async def fail(method: str, asked: str) -> int | None:
        return 500 if (method, asked) == ("POST", path) else None

    if happened:
        world.sandbox.faults.after = fail
    else:
        world.sandbox.faults.before = fail
    refusal = await refusals.refused(world.checkout())
    assert (refusal.code.name, refusal.reason) == ("UNAVAILABLE", "STRIPE_UNAVAILABLE")
    assert refusal.retry_after_seconds
    world.sandbox.faults.clear()
    before = len(await world.sandbox.requests("", path))
    page = await world.checkout()
    asked = (await world.sandbox.requests("", path))[before:]
    assert [one["method"] for one in asked][: 2 - happened] == ["GET", "POST"][: 2 - happened]
    assert [one["id"] for one in await world.sandbox.all(SESSIONS)] == [page.session_id]
    assert len(await world.sandbox.all("/v1/customers")) == 1
    keys = {one["idempotency_key"] for one in await world.sandbox.requests("POST", path)}
    # The log does not have the request that never reached the sandbox.
    assert len(keys) == 1


@pytest.mark.parametrize("happened", [False, True])
async def test_an_intent_of_yesterday_is_looked_up(world: World, happened: bool) -> None:  # noqa: FBT001 - pytest's way
    await crash(world, order(), 2, after=happened)
    world.billing.clock.advance(timedelta(hours=23))
    # Stripe has forgotten the key, so only the look-up prevents a second session.
    (row,) = await world.rows(tables.stripe_requests, tables.stripe_requests.c.purpose.like("checkout:%"))
    await world.execute(
        sa.update(tables.stripe_requests)
        .where(tables.stripe_requests.c.purpose == row.purpose)
        .values(idempotency_key="forgotten")
    )
    # Our clock is ahead of the sandbox's clock, so the page has expired here, and the next round replaces it.
    world.billing.clock.advance(timedelta(minutes=-30))
    await world.execute(
        sa.update(tables.stripe_requests).values(created_at=tables.stripe_requests.c.created_at - timedelta(minutes=30))
    )
    page = await world.checkout()
    assert [one["id"] for one in await world.sandbox.all(SESSIONS)] == [page.session_id]
    assert "forgotten" not in {one["idempotency_key"] for one in await world.sandbox.writes()}


async def test_an_address_that_stripe_refuses_is_the_caller_s_to_mend(world: World) -> None:
    refusal = await refusals.refused(world.checkout(customer_email="a@b..c"))
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "STRIPE_REFUSED")
    assert refusal.metadata["stripe_param"] == "email"
    assert "a@b..c" not in refusal.message
    await world.checkout(customer_email="a@b.example")
    (customer,) = await world.sandbox.all("/v1/customers")
    assert customer["email"] == "a@b.example"


async def test_another_s_refused_address_does_not_refuse_this_caller(world: World) -> None:
    await crash(world, order(email="a@b..c"), 1, after=False)
    await world.checkout(customer_email="a@b.example")
    (customer,) = await world.sandbox.all("/v1/customers")
    assert customer["email"] == "a@b.example"


async def test_while_stripe_hangs_no_transaction_is_open(world: World) -> None:
    impatient = client.Stripe("sk_test_tests", world.sandbox.url, call_seconds_max=2)
    released, all_asked = asyncio.Event(), asyncio.Barrier(6)

    async def hang(_method: str, _path: str) -> int | None:
        await all_asked.wait()
        await released.wait()
        return 503

    world.sandbox.faults.before = hang
    billing = world.billing
    customers = create_customer.Customers(billing.transactions, impatient, billing.clock)
    catalogs = versions.CatalogCache()
    refresher = refresh_subscription.Refresher(billing.transactions, catalogs, impatient, billing.clock)
    pages = open_checkout.Checkout(billing.transactions, catalogs, impatient, customers, refresher, billing.clock)
    calls = [
        asyncio.create_task(pages.open_page(order(f"https://app.example.com/{n}"), audit_store.Origin("caller:test")))
        for n in range(5)
    ]
    await all_asked.wait()
    async with billing.engine.connect() as conn:
        open_transactions = await conn.scalar(
            sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
            )
        )
    assert open_transactions == 0
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error).__name__ for error in errors} == {"StripeUnavailable"}
    released.set()
    world.sandbox.faults.clear()
    await world.checkout()
    assert len(await world.sandbox.all("/v1/customers")) == 1
    await impatient.close()


async def test_a_limit_of_stripe_s_is_told_as_unavailable(world: World) -> None:
    async def limit(_method: str, _path: str) -> int | None:
        return 429

    world.sandbox.faults.before = limit
    refusal = await refusals.refused(world.checkout())
    assert (refusal.code.name, refusal.reason) == ("UNAVAILABLE", "STRIPE_UNAVAILABLE")
    assert refusal.retry_after_seconds
    world.sandbox.faults.clear()
    await world.checkout()
