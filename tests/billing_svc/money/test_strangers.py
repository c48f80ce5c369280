"""Another product's subscription on our customer: it is not ours to apply, to show or to compare."""

from datetime import UTC, datetime

import sqlalchemy as sa

from billing.v1 import subscription_pb2
from billing_svc.catalog import versions
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.reconciliation import reconcile
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.sandboxed import World, event_about
from tests.billing_svc.subscriptions import dashboard
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END

ORIGIN = audit_store.Origin("operator:test")


async def stranger(ledger: Ledger) -> str:
    world = ledger.world
    price = await dashboard.make_price(world, await dashboard.make_product(world, "Another product"), 4200)
    return await dashboard.subscribe(world, price)


async def shown(world: World) -> list[str]:
    request = subscription_pb2.ListInvoicesRequest(account_id="org_1")
    return [one.total.amount for one in (await world.billing.subscriptions.ListInvoices(request)).invoices]


async def differences(world: World) -> list[tuple[str, str]]:
    comparison = reconcile.Comparison(
        world.billing.transactions, versions.CatalogCache(), world.stripe, world.billing.clock
    )
    outcome = await comparison.run(ORIGIN, reconcile.Scope(), reconcile.RunOptions())
    return [(one.kind, one.detail) for one in outcome.findings]


async def test_it_is_ignored_with_its_invoices(ledger: Ledger) -> None:
    await ledger.buy()
    before = await shown(ledger.world)
    subscription_id = await stranger(ledger)
    await ledger.world.deliver_new()
    assert await shown(ledger.world) == before
    await ledger.world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}")
    await ledger.world.deliver_new()
    states = {state for state, _ in (await ledger.world.inbox_states()).values()}
    assert states == {"applied", "ignored"}
    assert await differences(ledger.world) == []
    assert (await ledger.told()).plan == "pro"


async def test_an_invoice_that_an_earlier_release_stored_is_not_shown_any_more(ledger: Ledger) -> None:
    await ledger.buy()
    before = await shown(ledger.world)
    await stranger(ledger)
    (invoice,) = [one for one in await ledger.world.sandbox.all("/v1/invoices") if one["total"] == 4200]
    (row, *_) = await ledger.world.rows(tables.invoices)
    stored = {**row._asdict(), "invoice_id": invoice["id"], "subscription_id": "sub_another"}
    await ledger.world.execute(sa.insert(tables.invoices).values(stored))
    await ledger.world.deliver(event_about(invoice, "invoice.updated"))
    await ledger.world.apply_all()
    assert await shown(ledger.world) == before


async def test_what_this_service_sold_is_never_taken_for_another_product_s(ledger: Ledger) -> None:
    subscription_id = await ledger.world.subscribe()
    prices = tables.stripe_prices
    await ledger.world.execute(sa.update(prices).values(price_id=prices.c.price_id + "_x", product_id="prod_x"))
    await ledger.world.deliver(*await ledger.world.events("customer.subscription."))
    await ledger.world.apply_all()
    assert {state for state, _ in (await ledger.world.inbox_states()).values()} == {"failed"}
    assert subscription_id


async def test_the_period_is_that_of_our_item(tiers: Ledger) -> None:
    """An item of another product with a shorter period stands beside ours on the subscription."""
    ledger, world = tiers, tiers.world
    (subscription_id,) = [one["id"] for one in await tiers.at_stripe()]
    product = await dashboard.make_product(world, "Another product")
    weekly = await dashboard.make_price(world, product, 100, **{"recurring[interval]": "week"})
    (item,) = [one for one in await dashboard.items_of(world, subscription_id) if "quantity" in one]
    ours = item["current_period_end"]
    await dashboard.add_item(world, subscription_id, weekly)
    await ledger.work()
    told = await ledger.told()
    assert told.period_end.seconds == ours
    change = await ledger.change(AT_PERIOD_END, plan="big", preview=True)
    assert change.effective_at.seconds == ours
    told = await ledger.cancel(AT_PERIOD_END)
    assert told.cancel_at.seconds == ours
    (subscription,) = await ledger.at_stripe()
    assert subscription["cancel_at"] == ours


async def test_stripe_s_own_cancellation_counts_the_earliest_item(ledger: Ledger) -> None:
    subscription_id = await ledger.buy()
    world = ledger.world
    product = await dashboard.make_product(world, "Another product")
    weekly = await dashboard.make_price(world, product, 100, **{"recurring[interval]": "week"})
    await dashboard.add_item(world, subscription_id, weekly)
    await ledger.work()
    items = await dashboard.items_of(world, subscription_id)
    earliest = min(item["current_period_end"] for item in items)
    data = await world.sandbox.call("GET", f"/v1/subscriptions/{subscription_id}")
    told = await dashboard.apply(world, {**data, "cancel_at_period_end": True, "cancel_at": None})
    assert told.cancel_at.seconds == earliest
    assert datetime.fromtimestamp(earliest, UTC) < told.period_end.ToDatetime(UTC)
