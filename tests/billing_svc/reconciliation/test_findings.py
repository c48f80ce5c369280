"""What a comparison finds stays a finding until a comparison finds agreement; strangers; how far back it looks."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from billing.v1 import subscription_pb2, usage_pb2
from billing_svc.catalog import versions
from billing_svc.platform import errors
from billing_svc.platform.audit import store as audit_store
from billing_svc.platform.database import tables
from billing_svc.platform.findings import store as findings_store
from billing_svc.reconciliation import findings, reconcile, repair
from tests.billing_svc import refusals
from tests.billing_svc.money.ledger import Ledger
from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions import dashboard

ORIGIN = audit_store.Origin("operator:test")


@pytest.fixture
def ledger(world: World) -> Ledger:
    return Ledger(world)


async def compared(world: World, account_id: str | None = None, **options: Any) -> reconcile.Outcome:  # noqa: ANN401 - of its types
    comparison = reconcile.Comparison(
        world.billing.transactions, versions.CatalogCache(), world.stripe, world.billing.clock
    )
    return await comparison.run(ORIGIN, reconcile.Scope(account_id), reconcile.RunOptions(**options))


async def stored(world: World) -> list[findings_store.OpenFinding]:
    return await world.billing.transactions.read(findings_store.list_open)


async def cancel_unheard(world: World) -> str:
    """Schedule an end at Stripe whose event never comes."""
    (row,) = await world.rows(tables.subscriptions)
    await world.sandbox.call("POST", f"/v1/subscriptions/{row.subscription_id}", cancel_at_period_end="true")
    return str(row.subscription_id)


async def stranger(world: World) -> str:
    """Sell a plan of ours to a customer that the service does not know; the events never come."""
    customer = await world.sandbox.call("POST", "/v1/customers", email="someone@example.com")
    price = await dashboard.price_of(world, "nyqst_pro_monthly")
    fields = {"items[0][price]": price, "trial_period_days": 30}
    made = await world.sandbox.call("POST", "/v1/subscriptions", customer=customer["id"], **fields)
    return str(made["id"])


async def test_a_difference_stays_a_finding_until_a_comparison_finds_agreement(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    subscription_id = await cancel_unheard(world)
    await compared(world)
    (first,) = await stored(world)
    assert (first.kind, first.account_id, first.object_id) == ("subscription", "org_1", subscription_id)
    assert "cancel_at" in first.detail
    assert "--fix" in first.settled_by
    world.billing.clock.advance(timedelta(hours=1))
    (told,) = (await compared(world, "org_1")).findings
    assert told.since == first.since, "it is open since it was first found"
    assert [one.finding_id for one in await stored(world)] == [first.finding_id]
    # Its event comes after all.
    await world.deliver_new()
    assert await stored(world) != [], "only a comparison closes it"
    assert list((await compared(world)).findings) == []
    assert await stored(world) == []


async def test_what_was_repaired_is_no_finding(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    subscription_id = await cancel_unheard(world)
    done: list[repair.Done] = []
    assert list((await compared(world, fix=True, did=done.append)).findings) == []
    assert [(one.kind, one.about) for one in done] == [("subscription", subscription_id)]
    assert await stored(world) == []


async def test_a_comparison_of_an_account_closes_no_other_account_s_finding(world: World) -> None:
    for account_id in ("org_1", "org_2"):
        await world.subscribe(account_id)
    await world.deliver_new()
    for row in await world.rows(tables.subscriptions):
        await world.sandbox.call("POST", f"/v1/subscriptions/{row.subscription_id}", cancel_at_period_end="true")
    await compared(world)
    await compared(world, "org_1", fix=True)
    assert [one.account_id for one in await stored(world)] == ["org_2"]


async def test_a_finding_of_a_comparison_does_not_permit_a_change_to_the_same_plan(world: World) -> None:
    """Items that are not as sold permit it, because it puts them right."""
    await world.subscribe()
    await world.deliver_new()
    await cancel_unheard(world)
    await compared(world)
    request = subscription_pb2.ChangePlanRequest(
        account_id="org_1", plan="pro", price="monthly", request_id="r1", timing=subscription_pb2.TIMING_NOW
    )
    refusal = await refusals.refused(world.billing.subscriptions.ChangePlan(request))
    assert refusal.reason == "PLAN_UNCHANGED"


async def test_a_dry_run_keeps_nothing(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    await cancel_unheard(world)
    assert len((await compared(world, keep=False)).findings) == 1
    assert await stored(world) == []


async def test_whoever_pays_for_a_plan_and_belongs_to_nobody_is_a_finding(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    subscription_id = await stranger(world)
    (found,) = (await compared(world)).findings
    assert (found.kind, found.account_id, found.about) == ("stranger", "", subscription_id)
    assert (found.amount, found.currency) == (2000, "usd")
    assert "pays for a plan of ours (pro) and belongs to no account" in found.detail
    done: list[repair.Done] = []
    await compared(world, fix=True, did=done.append)
    assert done == [], "whose it is, a person decides"
    assert [one.object_id for one in await stored(world)] == [subscription_id]
    await world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}")
    assert list((await compared(world)).findings) == []
    assert await stored(world) == []


async def test_who_pays_for_something_else_is_none(world: World) -> None:
    customer = await world.sandbox.call("POST", "/v1/customers", email="someone@example.com")
    product = await dashboard.make_product(world, "another")
    price = await dashboard.make_price(world, product, 700)
    fields = {"items[0][price]": price, "trial_period_days": 30}
    await world.sandbox.call("POST", "/v1/subscriptions", customer=customer["id"], **fields)
    assert list((await compared(world)).findings) == []


async def test_a_price_made_by_hand_for_a_plan_of_ours_is_a_stranger_s_too(world: World) -> None:
    customer = await world.sandbox.call("POST", "/v1/customers", email="someone@example.com")
    product = (await world.rows(tables.stripe_prices, tables.stripe_prices.c.plan == "pro"))[0].product_id
    price = await dashboard.make_price(world, product, 1500)
    fields = {"items[0][price]": price, "trial_period_days": 30}
    await world.sandbox.call("POST", "/v1/subscriptions", customer=customer["id"], **fields)
    (found,) = (await compared(world)).findings
    assert (found.kind, found.amount) == ("stranger", 1500)


async def failed_usage(ledger: Ledger) -> None:
    """Let Stripe refuse the report of six runs; nobody mends it."""
    await ledger.buy()
    await ledger.use("runs", 206)

    async def refuse(_method: str, path: str) -> int | None:
        return 400 if path.startswith("/v1/billing/meter_events") else None

    ledger.world.sandbox.faults.before = refuse
    await ledger.over_the_period_end()
    ledger.world.sandbox.faults.clear()
    assert {row.state for row in await ledger.world.rows(tables.usage_reports)} == {"failed"}


async def test_usage_that_is_not_charged_is_not_forgotten(ledger: Ledger) -> None:
    await failed_usage(ledger)
    world = ledger.world
    (found,) = [one for one in (await compared(world)).findings if one.kind == "usage: failed"]
    assert (found.amount, found.currency) == (300, "usd")
    world.billing.clock.advance(timedelta(days=150))
    kinds = [one.kind for one in await comparison_of_usage(world)]
    assert "usage: failed" in kinds
    assert [one.kind for one in await stored(world) if one.kind.startswith("usage")] == ["usage: failed"]


async def test_a_finding_holds_its_period_in_view(ledger: Ledger) -> None:
    """A meter that lacks what was sent: all reports are final, and only the finding remembers."""
    world = ledger.world
    await ledger.buy()
    await ledger.use("runs", 206)
    await ledger.over_the_period_end()
    assert list((await compared(world)).findings) == []
    await world.execute(sa.update(tables.usage_reports).values(to_units=tables.usage_reports.c.to_units + 1))
    await world.execute(
        sa.update(tables.usage_counters)
        .where(tables.usage_counters.c.billable > 0)
        .values(
            billable=tables.usage_counters.c.billable + 1,
            sealed=tables.usage_counters.c.sealed + 1,
            used=tables.usage_counters.c.used + 1,
        )
    )
    first = {one.kind for one in await comparison_of_usage(world)}
    assert "usage: meter" in first
    world.billing.clock.advance(timedelta(days=150))
    assert "usage: meter" in {one.kind for one in await comparison_of_usage(world)}


async def comparison_of_usage(world: World) -> list[findings.Finding]:
    return [one for one in (await compared(world)).findings if one.kind.startswith("usage: ")]


async def test_what_is_too_old_to_be_compared_is_counted_and_can_be_asked_for(ledger: Ledger) -> None:
    world = ledger.world
    await ledger.buy()
    await ledger.use("runs", 206)
    await ledger.over_the_period_end()
    near = (await compared(world)).left_out
    assert (near.periods, near.invoices) == (0, 0)
    world.billing.clock.advance(timedelta(days=150))
    far = await compared(world)
    assert (far.left_out.periods, far.left_out.invoices) == (1, 2)
    comparison = reconcile.Comparison(
        world.billing.transactions, versions.CatalogCache(), world.stripe, world.billing.clock
    )
    since = world.billing.clock.now() - timedelta(days=400)
    all_of_it = await comparison.run(ORIGIN, reconcile.Scope(None, since), reconcile.RunOptions())
    assert (all_of_it.left_out.periods, all_of_it.left_out.invoices) == (0, 0)
    assert all_of_it.accounts == 1


async def test_an_old_invoice_that_is_not_final_here_is_compared(ledger: Ledger) -> None:
    """It was paid at Stripe, and the event never came."""
    world = ledger.world
    await ledger.buy()
    (row,) = await world.rows(tables.invoices)
    await world.execute(sa.update(tables.invoices).values(status="open", amount_paid=0))
    world.billing.clock.advance(timedelta(days=150))
    found = [one for one in (await compared(world)).findings if one.kind == "invoice"]
    assert [one.about for one in found] == [row.invoice_id]
    assert "status: open is paid at Stripe" in found[0].detail


async def test_an_invoice_that_differs_is_not_forgotten(ledger: Ledger) -> None:
    """It is paid here, and its total was changed at Stripe's side of the record."""
    world = ledger.world
    await ledger.buy()
    (row,) = await world.rows(tables.invoices)
    await world.execute(sa.update(tables.invoices).values(total=1))
    assert [one.about for one in (await compared(world)).findings] == [row.invoice_id]
    world.billing.clock.advance(timedelta(days=150))
    found = [one.about for one in (await compared(world)).findings if one.kind == "invoice"]
    assert found == [row.invoice_id]
    await compared(world, fix=True)
    assert [one for one in await stored(world) if one.kind == "invoice"] == []


async def test_units_that_wait_are_told_with_their_money(world: World) -> None:
    await world.subscribe()
    await world.deliver_new()
    await world.billing.usage.RecordUsage(
        usage_pb2.RecordUsageRequest(account_id="org_1", event_id="e1", meter="runs", quantity=203)
    )
    (found,) = (await compared(world)).findings
    assert (found.kind, found.amount, found.currency, found.is_repairable) == ("usage: unsealed", 150, "usd", True)
    asked: list[list[int | None]] = []

    def refuse(charges: Sequence[findings.Finding]) -> bool:
        asked.append([one.amount for one in charges])
        return False

    done: list[repair.Done] = []
    outcome = await compared(world, "org_1", fix=True, agree=refuse, did=done.append)
    assert (asked, done) == ([[150]], [])
    assert [one.kind for one in outcome.findings] == ["usage: unsealed"]
    await compared(world, "org_1", fix=True, did=done.append)
    assert [(one.amount, one.currency) for one in done] == [(150, "usd")]
    assert "3 units: sent to the meter" in done[0].detail


async def test_what_was_done_is_told_although_the_next_thing_fails(world: World) -> None:
    """Stripe goes away after the first account's units were sent."""
    for account_id in ("org_1", "org_2"):
        await world.subscribe(account_id)
    await world.deliver_new()
    for account_id in ("org_1", "org_2"):
        await world.billing.usage.RecordUsage(
            usage_pb2.RecordUsageRequest(account_id=account_id, event_id="e1", meter="runs", quantity=203)
        )
    sent = False

    async def away(_method: str, path: str) -> int | None:
        nonlocal sent
        is_gone, sent = sent, sent or path == "/v1/billing/meter_events"
        return 503 if is_gone else None

    world.sandbox.faults.before = away
    done: list[repair.Done] = []
    with pytest.raises(errors.StripeUnavailable):
        await compared(world, fix=True, did=done.append)
    sent_units = [(one.account_id, one.amount) for one in done if "sent to the meter" in one.detail]
    assert sent_units == [("org_1", 150)]
