"""A customer that was deleted at Stripe, where the event of the deletion never arrives."""

import pytest
import sqlalchemy as sa

from billing.v1 import subscription_pb2
from billing_svc.catalog import versions
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.reconciliation import reconcile
from billing_svc.subscriptions.records import refresh_subscription
from billing_svc.subscriptions.refusals import gone_customers
from tests.billing_svc import refusals
from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions.dealing import NOW, Dealing

OPERATOR = audit_store.Origin("operator:test")


async def portal(world: World, request_id: str = "") -> str:
    request = subscription_pb2.CreatePortalSessionRequest(account_id="org_1", request_id=request_id)
    return (await world.billing.subscriptions.CreatePortalSession(request)).url


async def delete_customer(world: World) -> str:
    """Delete the account's customer at Stripe; nothing tells the service."""
    (account,) = await world.rows(tables.accounts)
    await world.sandbox.call("DELETE", f"/v1/customers/{account.customer_id}")
    return str(account.customer_id)


async def assert_replaced(world: World, deleted: str) -> None:
    """The account has a new customer, and the audit log says what became of the old one, once."""
    (account,) = await world.rows(tables.accounts)
    assert account.customer_id not in {None, deleted}
    audit = await world.rows(tables.audit_log, tables.audit_log.c.action == "customer.unlinked")
    assert [(row.changes, row.actor) for row in audit] == [({"customer": deleted}, "caller:test")]


async def test_the_portal_goes_on_with_a_new_customer_and_the_plan_ends(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    deleted = await delete_customer(world)
    assert await portal(world, "r1")
    await assert_replaced(world, deleted)
    assert (await world.subscription()).plan == "free"
    assert await portal(world)


async def test_a_checkout_goes_on_though_the_plan_was_still_stored(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    deleted = await delete_customer(world)
    paid = await world.sandbox.pay((await world.checkout(request_id="r1")).url)
    await assert_replaced(world, deleted)
    assert paid["customer"] != deleted
    await world.deliver_new()
    assert (await world.subscription()).plan == "pro"


async def test_an_open_page_of_a_deleted_customer_is_not_handed_out_again(world: World) -> None:
    first = await world.checkout()
    deleted = await delete_customer(world)
    second = await world.checkout()
    assert second.session_id != first.session_id
    assert not second.reused
    await assert_replaced(world, deleted)
    states = {row.session_id: row.state for row in await world.rows(tables.checkouts)}
    assert states == {first.session_id: "expired", second.session_id: "open"}
    await world.sandbox.pay(second.url)
    # The event, if it comes after all, changes nothing.
    await world.deliver_new()
    await assert_replaced(world, deleted)
    assert (await world.subscription()).plan == "pro"


class TestPayAsYouGo:
    @pytest.fixture
    def catalog_name(self) -> str:
        return "kalshibook"

    async def test_a_switch_goes_on_with_a_new_customer(self, deal: Dealing) -> None:
        await deal.world.checkout(plan="project")
        deleted = await delete_customer(deal.world)
        assert (await deal.switch(on=True)).pay_as_you_go
        await assert_replaced(deal.world, deleted)
        (made,) = await deal.at_stripe()
        assert made["customer"] != deleted


async def test_a_customer_that_is_missing_beside_our_prices_is_deleted(world: World) -> None:
    await world.checkout()
    await elsewhere(world)
    assert await portal(world)
    await assert_replaced(world, "cus_elsewhere")


async def test_the_key_of_another_stripe_account_unlinks_nobody(world: World) -> None:
    """There every object is missing."""
    await world.checkout()
    await elsewhere(world)
    prices = tables.stripe_prices
    await world.execute(sa.update(prices).values(price_id=prices.c.price_id + "x"))
    for call in (portal(world), portal(world, "r1"), world.checkout(success_url="https://app.example.com/elsewhere")):
        refusal = await refusals.refused(call)
        assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "STRIPE_ACCOUNT_MISMATCH")
        assert refusal.metadata == {"account_id": "org_1", "stripe_object": "cus_elsewhere"}
    (account,) = await world.rows(tables.accounts)
    assert account.customer_id == "cus_elsewhere"
    assert await world.rows(tables.audit_log, tables.audit_log.c.action == "customer.unlinked") == []
    # With the right key the same call is good.
    await world.execute(sa.update(prices).values(price_id=sa.func.left(prices.c.price_id, -1)))
    assert await portal(world, "r1")


async def test_with_the_key_of_another_stripe_account_nothing_counts_as_over(deal: Dealing) -> None:
    await deal.buy(plan="pro")
    world, prices, subscriptions = deal.world, tables.stripe_prices, tables.subscriptions
    await world.execute(sa.update(subscriptions).values(subscription_id="sub_elsewhere"))
    await world.execute(sa.update(prices).values(price_id=prices.c.price_id + "x"))
    for call in (deal.cancel(NOW, request_id="r1"), deal.resume()):
        refusal = await refusals.refused(call)
        assert refusal.reason == "STRIPE_ACCOUNT_MISMATCH"
    refusal = await refusals.refused(deal.cancel(NOW, request_id="r1"))
    assert refusal.metadata == {"account_id": "org_1", "stripe_object": "sub_elsewhere"}
    assert (await deal.told()).plan == "pro"


async def test_the_comparison_lists_a_deleted_customer_and_the_repair_unlinks_it(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    comparison = reconcile.Comparison(
        world.billing.transactions, versions.CatalogCache(), world.stripe, world.billing.clock
    )

    async def compared(account_id: str | None = None, *, fix: bool = False) -> set[tuple[str, str, str]]:
        outcome = await comparison.run(OPERATOR, reconcile.Scope(account_id), reconcile.RunOptions(fix=fix))
        return {(one.kind, one.account_id, one.about) for one in outcome.findings}

    assert await compared() == set()
    deleted = await delete_customer(world)
    for account_id in (None, "org_1"):
        assert ("customer", "org_1", deleted) in await compared(account_id)
    assert await compared(fix=True) == set()
    (account,) = await world.rows(tables.accounts)
    assert account.customer_id is None
    assert (await world.subscription()).plan == "free"
    (audit,) = await world.rows(tables.audit_log, tables.audit_log.c.action == "customer.unlinked")
    assert (audit.changes, audit.actor) == ({"customer": deleted}, OPERATOR.actor)


async def test_what_is_noticed_twice_is_unlinked_once(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    deleted = await delete_customer(world)
    billing, catalogs = world.billing, versions.CatalogCache()
    refresher = refresh_subscription.Refresher(billing.transactions, catalogs, world.stripe, billing.clock)
    gone = gone_customers.GoneCustomers(billing.transactions, world.stripe, refresher, billing.clock)
    service = audit_store.Origin("service")
    assert await gone.unlink_if_deleted(deleted, service)
    (account,) = await world.rows(tables.accounts)
    assert account.customer_id is None
    assert await gone.unlink_if_deleted(deleted, service)
    assert not await gone.unlink_if_deleted("cus_strange", service)
    assert len(await world.rows(tables.audit_log, tables.audit_log.c.action == "customer.unlinked")) == 1


async def elsewhere(world: World) -> None:
    """Let the account have a customer of another Stripe account."""
    await world.execute(sa.update(tables.stripe_customers).values(customer_id="cus_elsewhere"))
    await world.execute(sa.update(tables.accounts).values(customer_id="cus_elsewhere"))
