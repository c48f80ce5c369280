import asyncio
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from billing.v1 import subscription_pb2
from billing_svc.catalog import versions
from billing_svc.platform import clock
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.stripe import catalog_sync
from billing_svc.stripe import subscriptions as stripe_subscriptions
from billing_svc.subscriptions.records import apply_subscription
from tests.billing_svc import books, refusals
from tests.billing_svc.sandboxed import World, catalog_of

ELSEWHERE = "https://app.example.com/elsewhere"


async def states(world: World) -> list[str]:
    """Return the states of all checkouts, oldest first."""
    rows = await world.rows(tables.checkouts)
    return [row.state for row in sorted(rows, key=lambda row: row.created_at)]


async def session_statuses(world: World) -> list[str]:
    return [session["status"] for session in reversed(await world.sandbox.all("/v1/checkout/sessions"))]


async def test_a_page_sells_the_base_price_and_every_metered_one_under_our_metadata(world: World) -> None:
    page = await world.checkout(customer_email="ann@example.com")
    (created,) = await world.sandbox.requests("POST", "/v1/checkout/sessions")
    prices = {row.lookup_key: row.price_id for row in await world.rows(tables.stripe_prices)}
    # A list, as form encoding has it.
    assert list(created["params"]["line_items"].values()) == [
        {"price": prices["nyqst_pro_monthly"], "quantity": "1"},
        {"price": prices["nyqst_pro_runs"]},
    ]
    metadata = created["params"]["metadata"]
    assert (metadata["account_id"], metadata["plan"], metadata["catalog_version"]) == ("org_1", "pro", "1")
    assert created["params"]["subscription_data"]["metadata"] == metadata
    (customer,) = await world.sandbox.all("/v1/customers")
    assert (customer["email"], customer["metadata"]) == ("ann@example.com", {"account_id": "org_1"})
    assert page.session_id.startswith("cs_")
    assert not page.reused
    assert page.expires_at.ToDatetime() > clock.Clock().now().replace(tzinfo=None)


async def test_an_equal_order_is_given_the_same_page(world: World) -> None:
    first = await world.checkout()
    again = await world.checkout(price="monthly", quantity=1)
    assert (again.session_id, again.url) == (first.session_id, first.url)
    assert (first.reused, again.reused) == (False, True)
    assert await states(world) == ["open"]


async def test_another_order_expires_the_page_before(world: World) -> None:
    first = await world.checkout()
    second = await world.checkout(success_url=ELSEWHERE)
    assert first.session_id != second.session_id
    assert await states(world) == ["expired", "open"]
    assert await session_statuses(world) == ["expired", "open"]
    closed = [row for row in await world.rows(tables.audit_log) if row.action == "checkout.closed"]
    assert [(row.account_id, row.actor, row.changes["state"]) for row in closed] == [
        ("org_1", "caller:test", "expired")
    ]


async def test_a_page_of_an_older_catalog_is_not_given_again(world: World) -> None:
    first = await world.checkout()
    dearer = catalog_of("nyqst", {'"20.00"': '"25.00"'})
    await catalog_sync.apply(
        world.billing.transactions, world.stripe, dearer, "operator:test", clock.Clock(), lambda _line: None
    )
    second = await world.checkout()
    assert first.session_id != second.session_id
    sessions = {one["id"]: one for one in await world.sandbox.all("/v1/checkout/sessions")}
    assert (sessions[first.session_id]["amount_total"], sessions[second.session_id]["amount_total"]) == (2000, 2500)
    assert sessions[first.session_id]["status"] == "expired"


async def test_twenty_orders_at_once_make_one_customer_and_leave_one_page_open(world: World) -> None:
    urls = [f"https://app.example.com/{n % 3}" for n in range(20)]
    calls = await asyncio.gather(*(world.checkout(success_url=url) for url in urls), return_exceptions=True)
    given = [one for one in calls if isinstance(one, subscription_pb2.CreateCheckoutResponse)]
    # A call that lost the race is asked to repeat; there is no other error.
    codes = {refusals.of(one).reason for one in calls if isinstance(one, BaseException)}  # type: ignore[arg-type]
    assert given
    # The server's own deadline passes where the machine is busy: the outcome is unknown, as to any caller.
    assert codes <= {"LOST_RACE", "STRIPE_UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert len(await world.sandbox.all("/v1/customers")) == 1
    assert len(await world.rows(tables.stripe_customers)) == 1
    page = await world.checkout()
    assert (await states(world)).count("open") == 1
    assert (await session_statuses(world)).count("open") == 1
    assert (await world.sandbox.pay(page.url))["status"] == "complete"


async def test_equal_orders_at_once_get_one_page(world: World) -> None:
    pages = await asyncio.gather(*(refusals.repeated(world.checkout) for _ in range(10)))
    assert len({page.session_id for page in pages}) == 1
    assert len(await world.sandbox.all("/v1/customers")) == 1
    assert await session_statuses(world) == ["open"]


async def test_a_subscribed_account_is_refused(world: World) -> None:
    await world.subscribe()
    await world.deliver(*await world.events("customer.subscription."))
    await world.apply_all()
    before = await books.row_counts(world.billing.engine)
    refusal = await refusals.refused(world.checkout())
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "ALREADY_SUBSCRIBED")
    assert refusal.metadata == {"plan": "pro", "status": "active"}
    assert await books.row_counts(world.billing.engine) == before


@pytest.mark.parametrize("order", [{}, {"success_url": ELSEWHERE}], ids=["equal", "other"])
async def test_nobody_pays_twice_while_the_event_is_late(world: World, order: dict[str, str]) -> None:
    subscription_id = await world.subscribe()
    for _ in range(3):
        refusal = await refusals.refused(world.checkout(**order))
        assert (refusal.reason, refusal.metadata) == ("ALREADY_SUBSCRIBED", {"plan": "pro", "status": "active"})
    # Also after the page has expired by our clock.
    world.billing.clock.advance(timedelta(hours=25))
    assert (await refusals.refused(world.checkout(**order))).reason == "ALREADY_SUBSCRIBED"
    assert len(await world.sandbox.all("/v1/checkout/sessions")) == 1
    # A lost event does not block the account's purchases for ever.
    await world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}")
    world.billing.clock.advance(timedelta(hours=-25))
    assert not (await world.checkout(**order)).reused


async def test_after_a_cancellation_the_account_can_buy_again(world: World) -> None:
    subscription_id = await world.subscribe()
    await world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}")
    await world.deliver(*await world.events("c"))
    await world.apply_all()
    assert (await world.subscription()).plan == "free"
    await world.subscribe()
    await world.deliver(*await world.events("c"))
    await world.apply_all()
    assert (await world.subscription()).plan == "pro"


async def test_a_page_whose_time_is_over_is_replaced(world: World) -> None:
    first = await world.checkout()
    # It has expired only by our clock, so it is expired at Stripe as well, and cannot be paid any more.
    await world.execute(sa.update(tables.checkouts).values(expires_at=clock.Clock().now() - timedelta(seconds=1)))
    second = await world.checkout()
    assert first.session_id != second.session_id
    assert await session_statuses(world) == ["expired", "open"]


async def test_a_page_that_stripe_expired_is_replaced(world: World) -> None:
    first = await world.checkout()
    await world.sandbox.call("POST", f"/v1/checkout/sessions/{first.session_id}/expire")
    second = await world.checkout()
    assert first.session_id != second.session_id
    assert await states(world) == ["expired", "open"]


@pytest.mark.parametrize("order", [{}, {"success_url": ELSEWHERE}], ids=["equal", "other"])
async def test_a_session_that_is_gone_at_stripe_is_replaced(world: World, order: dict[str, str]) -> None:
    await world.checkout()
    await world.execute(sa.update(tables.checkouts).values(session_id="cs_test_gone"))
    assert not (await world.checkout(**order)).reused
    assert await states(world) == ["expired", "open"]


async def test_an_expired_event_closes_the_page(world: World) -> None:
    page = await world.checkout()
    await world.sandbox.call("POST", f"/v1/checkout/sessions/{page.session_id}/expire")
    await world.deliver(*await world.events("checkout.session.expired"))
    await world.apply_all()
    assert await states(world) == ["expired"]


FOREIGN_URLS = (
    "javascript:alert(1)",
    "//evil.example/x",
    "https:evil.example",
    "https:///app.example.com",
    "https://evil.example/?https://app.example.com",
    "https://app.example.com@evil.example/",
    "https://user@app.example.com/",
    "https://app.example.com\\@evil.example/",
    "https://app.example.com:8443/",
    "http://app.example.com/",
    "https://app.example.com.evil.example/",
    "https://аpp.example.com/",  # noqa: RUF001 - a Cyrillic letter
    "https://app.example.com/\nx",
    " https://app.example.com/",
    "https://[app.example.com/",
    "data:text/html,x",
    "https://app.example.com/" + "x" * 2048,
)


async def test_a_redirect_leads_only_to_an_allowed_origin(world: World) -> None:
    before = await books.row_counts(world.billing.engine)
    for url in FOREIGN_URLS:
        for field in ("success_url", "cancel_url"):
            refusal = await refusals.refused(world.checkout(**{field: url}))
            assert (refusal.code.name, refusal.fields) == ("INVALID_ARGUMENT", (field,)), url
    assert await books.row_counts(world.billing.engine) == before


async def test_an_allowed_origin_may_be_spelt_in_capitals_and_ask_for_the_session_id(world: World) -> None:
    page = await world.checkout(success_url="HTTPS://APP.example.com/paid?session={CHECKOUT_SESSION_ID}")
    paid = await world.sandbox.pay(page.url)
    assert paid["redirect"].endswith(f"session={page.session_id}")


UNFIT_ORDERS: tuple[tuple[dict[str, Any], str, str, tuple[str, ...]], ...] = (
    ({"plan": "gold"}, "NOT_FOUND", "PLAN_NOT_FOUND", ()),
    ({"price": "weekly"}, "NOT_FOUND", "PRICE_NOT_FOUND", ()),
    ({"plan": "free"}, "FAILED_PRECONDITION", "PLAN_NOT_SOLD", ()),
    ({"plan": ""}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("plan",)),
    ({"plan": "Pro!"}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("plan",)),
    ({"account_id": ""}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("account_id",)),
    ({"account_id": "x" * 129}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("account_id",)),
    ({"quantity": 2}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("quantity",)),
    ({"quantity": 0}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("quantity",)),
    ({"quantity": -1}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("quantity",)),
    ({"customer_email": "nobody"}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("customer_email",)),
    ({"customer_email": "a@" + "b" * 254 + ".com"}, "INVALID_ARGUMENT", "INVALID_REQUEST", ("customer_email",)),
)


async def test_an_unfit_order_is_refused_and_changes_nothing(world: World) -> None:
    before, writes = await books.row_counts(world.billing.engine), len(await world.sandbox.writes())
    for order, code, reason, fields in UNFIT_ORDERS:
        refusal = await refusals.refused(world.checkout(**order))
        assert (refusal.code.name, refusal.reason, refusal.fields) == (code, reason, fields), order
    assert await books.row_counts(world.billing.engine) == before
    assert len(await world.sandbox.writes()) == writes


async def test_a_plan_that_is_not_at_stripe_cannot_be_bought(world: World) -> None:
    catalog = catalog_of("nyqst", {"    prices:\n": "    prices:\n      yearly2: {amount: 5, interval: month}\n"})
    now = clock.Clock().now()
    await world.billing.transactions.run(lambda conn: versions.publish(conn, catalog, "operator:test", now))
    before = await books.row_counts(world.billing.engine)
    refusal = await refusals.refused(world.checkout(price="yearly2"))
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "PLAN_NOT_APPLIED")
    assert refusal.metadata == {"plan": "pro", "price": "yearly2"}
    assert await books.row_counts(world.billing.engine) == before


class TestSoldByTheSeat:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "orgs"

    async def test_price_quantity_and_trial_reach_the_subscription(self, world: World) -> None:
        subscription_id = await world.subscribe(plan="team", price="yearly", quantity=7)
        await world.deliver(*await world.events("customer.subscription."))
        await world.apply_all()
        bought = await world.subscription()
        assert (bought.plan, bought.price, bought.quantity) == ("team", "yearly", 7)
        assert (bought.status, bought.subscription_id) == (subscription_pb2.STATUS_TRIALING, subscription_id)
        assert (bought.trial_end.ToDatetime() - bought.period_start.ToDatetime()).days == 14

    async def test_more_than_stripe_takes_is_not_sold(self, world: World) -> None:
        # At 15.00 a seat Stripe's eight digits of cents end at 66,666 seats.
        await world.checkout(plan="team", price="monthly", quantity=66_666)
        refusal = await refusals.refused(world.checkout(plan="team", price="monthly", quantity=66_667))
        assert (refusal.reason, refusal.fields) == ("INVALID_REQUEST", ("quantity",))

    async def test_another_quantity_is_another_order(self, world: World) -> None:
        first = await world.checkout(plan="team", quantity=7)
        second = await world.checkout(plan="team", quantity=8)
        assert first.session_id != second.session_id
        assert await session_statuses(world) == ["expired", "open"]


async def test_a_request_id_sells_one_thing(world: World) -> None:
    first = await world.checkout(request_id="r1")
    assert (await world.checkout(request_id="r1")).session_id == first.session_id
    refusal = await refusals.refused(world.checkout(request_id="r1", success_url=ELSEWHERE))
    assert (refusal.reason, refusal.metadata) == ("REQUEST_ID_REUSED", {"request_id": "r1"})
    assert await states(world) == ["open"]


async def test_after_the_customer_was_deleted_a_new_one_is_made_each_time(world: World) -> None:
    made = []
    for _ in range(3):
        await world.checkout()
        (customer,) = await world.sandbox.all("/v1/customers")
        made.append(customer["id"])
        await world.sandbox.call("DELETE", f"/v1/customers/{customer['id']}")
        await world.deliver_new()
        assert [row.customer_id for row in await world.rows(tables.accounts)] == [None]
    assert len(set(made)) == len(made)


class TestTrials:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "orgs"

    async def test_a_plan_is_tried_once(self, world: World) -> None:
        subscription_id = await world.subscribe(plan="team", quantity=2, price="yearly")
        await world.deliver_new()
        told = await world.subscription()
        assert (told.status, told.price, told.quantity) == (subscription_pb2.STATUS_TRIALING, "yearly", 2)
        assert told.HasField("trial_end")
        await world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}")
        await world.deliver_new()
        await world.subscribe(plan="starter")
        await world.deliver_new()
        assert (await world.subscription()).status == subscription_pb2.STATUS_ACTIVE

    @pytest.mark.parametrize(
        ("status", "tried"), [("incomplete_expired", False), ("canceled", True)], ids=["never paid", "lived"]
    )
    async def test_only_a_plan_that_lived_uses_up_the_trial(self, world: World, status: str, *, tried: bool) -> None:
        first = await world.subscribe(plan="starter")
        await world.deliver_new()
        data = await world.sandbox.call("GET", f"/v1/subscriptions/{first}")
        now = world.billing.clock.now()
        ended = stripe_subscriptions.from_stripe({**data, "status": status, "ended_at": int(now.timestamp())})
        await world.billing.transactions.run(
            lambda conn: apply_subscription.apply(
                conn, versions.CatalogCache(), ended, audit_store.Origin("stripe:evt"), now
            )
        )
        second = await world.subscribe(plan="team")
        bought = await world.sandbox.call("GET", f"/v1/subscriptions/{second}")
        assert bought["status"] == ("active" if tried else "trialing")
