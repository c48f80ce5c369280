"""Changing the plan, its price or its seats, now and at the period's end."""

import asyncio
import contextlib
from datetime import timedelta

import grpc
import pytest

from billing.v1 import subscription_pb2
from billing_svc.catalog import loading, versions
from billing_svc.platform.database import tables
from billing_svc.stripe import catalog_sync
from tests.billing_svc import refusals
from tests.billing_svc.sandboxed import World
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW, Dealing

CATALOG = """
catalog: tiers
currency: usd
default_plan: free
meters:
  runs: {unit: run, kind: consumable}
plans:
  free:
    name: Free
    limits: {runs: {included: 5, beyond: deny}}
  small:
    name: Small
    prices:
      monthly: {amount: "10.00", interval: month}
    limits: {runs: {included: 100, beyond: charge, unit_price: "0.10"}}
  big:
    name: Big
    prices:
      monthly: {amount: "40.00", interval: month}
    limits: {runs: {included: 1000, beyond: charge, unit_price: "0.05"}}
  team:
    name: Team
    prices:
      monthly: {amount: "8.00", interval: month, per_seat: true}
      yearly: {amount: "80.00", interval: year, per_seat: true}
    limits: {runs: {included: 50, beyond: deny, per_seat: true}}
  old:
    name: Old
    sold: false
    prices:
      monthly: {amount: "1.00", interval: month}
"""


@pytest.fixture
async def deal(world: World) -> Dealing:
    """An account, and a catalog with everything that a change can concern."""
    billing = world.billing
    catalog = loading.load_text(CATALOG, "tiers")
    await catalog_sync.apply(
        billing.transactions, world.stripe, catalog, "operator:test", billing.clock, lambda _line: None
    )
    return Dealing(world)


async def items(deal: Dealing) -> dict[str, int | None]:
    """Return the items of the account's subscription at Stripe: quantities by lookup key."""
    (subscription,) = await deal.at_stripe()
    return {item["price"]["lookup_key"]: item.get("quantity") for item in subscription["items"]["data"]}


async def test_an_upgrade_now_replaces_every_item_and_costs_what_the_preview_said(deal: Dealing) -> None:
    await deal.buy(plan="small")
    await deal.advance(days=10)
    preview = await deal.change(plan="big", preview=True, request_id="")
    assert preview.subscription.plan == "small"
    assert preview.lines
    assert all(line.proration for line in preview.lines if line.amount.amount.startswith("-"))
    changed = await deal.change(plan="big", proration_at=preview.proration_at)
    assert (changed.subscription.plan, changed.subscription.quantity) == ("big", 1)
    assert (changed.total, changed.lines) == (preview.total, preview.lines)
    assert changed.effective_at == changed.proration_at == preview.proration_at
    assert await items(deal) == {"tiers_big_monthly": 1, "tiers_big_runs": None}
    (latest, *_) = await deal.world.sandbox.all("/v1/invoices")
    assert latest["total"] == round(float(changed.total.amount) * 100)
    await deal.work()
    assert (await deal.told()).plan == "big"


async def test_a_unit_is_charged_once_on_the_terms_that_it_was_used_on(deal: Dealing) -> None:
    """Unreported overage, an upgrade in the middle of the period, overage again, and the period's end."""
    await deal.buy(plan="small")
    await deal.use("runs", 130)
    await deal.advance(days=3)
    await deal.use("runs", 10)
    await deal.change(plan="big")
    await deal.use("runs", 1_000)
    await deal.cancel(NOW)
    await deal.advance(days=2)
    charged = await deal.invoiced()
    assert charged["tiers_small_runs"] == 400  # 40 runs of $0.10
    # 100 of the thousand included units were consumed before.
    assert charged["tiers_big_runs"] == 500  # 100 runs of $0.05
    told = await deal.told()
    assert (told.plan, told.status) == ("free", subscription_pb2.STATUS_CANCELED)


async def test_the_same_request_again_changes_nothing_and_answers_the_same(deal: Dealing) -> None:
    await deal.buy(plan="small")
    first = await deal.change(plan="big", request_id="r1")
    writes = len(await deal.world.sandbox.writes())
    again = await deal.change(plan="big", request_id="r1")
    assert again == first
    assert len(await deal.world.sandbox.writes()) == writes
    refusal = await refusals.refused(deal.change(plan="small", request_id="r1"))
    assert refusal.reason == "REQUEST_ID_REUSED"
    refusal = await refusals.refused(deal.cancel(NOW, request_id="r1"))
    assert refusal.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("timing", [NOW, AT_PERIOD_END])
@pytest.mark.parametrize("after", [False, True])
async def test_an_outage_at_any_write_is_carried_on(deal: Dealing, timing: int, *, after: bool) -> None:
    await deal.buy(plan="small")
    await deal.use("runs", 120)

    def failing(number: int) -> None:
        seen = 0

        async def cut(method: str, path: str) -> int | None:
            nonlocal seen
            seen += method != "GET" and "meter_events" not in path
            return 503 if seen > number else None

        faults = deal.world.sandbox.faults
        faults.clear()
        if after:
            faults.after = cut
        else:
            faults.before = cut

    for number in range(4):
        failing(number)
        # Whatever the error, the same call is repeated.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await deal.change(timing, plan="big", request_id="r1")
    deal.world.sandbox.faults.clear()
    deal.world.billing.clock.advance(timedelta(minutes=3))
    await deal.change(timing, plan="big", request_id="r1")
    (subscription,) = await deal.at_stripe()
    updates = await deal.world.sandbox.requests("POST", f"/v1/subscriptions/{subscription['id']}")
    keys = {one["idempotency_key"] for one in updates}
    if timing == NOW:
        assert len(keys) == 1
        assert (await deal.told()).plan == "big"
    else:
        assert len(await deal.world.sandbox.all("/v1/subscription_schedules")) == 1
        assert (await deal.told()).pending_change.plan == "big"


async def test_a_payment_that_is_refused_changes_nothing(deal: Dealing) -> None:
    await deal.buy(plan="small")
    await deal.give_card("declines")
    refusal = await refusals.refused(deal.change(plan="big", request_id="r1"))
    assert refusal.reason == "PAYMENT_FAILED"
    assert (await deal.told()).plan == "small"
    assert await items(deal) == {"tiers_small_monthly": 1, "tiers_small_runs": None}
    await deal.give_card("works")
    assert (await deal.change(plan="big", request_id="r1")).subscription.plan == "big"


async def test_seats_and_yearly_prices_change(deal: Dealing) -> None:
    await deal.buy(plan="team", quantity=3)
    assert (await deal.change(quantity=5)).subscription.quantity == 5
    assert (await deal.check("runs", 250)).included == 250
    changed = (await deal.change(price="yearly")).subscription
    assert (changed.price, changed.quantity) == ("yearly", 5)
    assert await items(deal) == {"tiers_team_yearly": 5}
    fewer = (await deal.change(quantity=2)).subscription
    assert fewer.quantity == 2
    assert (await deal.check("runs")).included == 100


async def test_a_change_at_the_period_s_end_is_shown_until_then_and_takes_effect_on_time(deal: Dealing) -> None:
    await deal.buy(plan="big")
    answer = await deal.change(AT_PERIOD_END, plan="small")
    assert answer.subscription.plan == "big"
    pending = answer.subscription.pending_change
    assert (pending.plan, pending.price, pending.quantity) == ("small", "monthly", 1)
    assert pending.effective_at == answer.effective_at == answer.subscription.period_end
    assert [(line.amount.amount, line.quantity) for line in answer.lines if line.amount.amount != "0.00"] == [
        ("10.00", 1)
    ]
    await deal.use("runs", 1_020)
    await deal.advance(days=33)
    told = await deal.told()
    assert (told.plan, told.HasField("pending_change")) == ("small", False)
    assert await items(deal) == {"tiers_small_monthly": 1, "tiers_small_runs": None}
    assert await deal.invoiced() == {"tiers_big_monthly": 4_000, "tiers_big_runs": 100, "tiers_small_monthly": 1_000}
    # Another change works after the schedule was used.
    assert (await deal.change(plan="big")).subscription.plan == "big"


async def test_a_pending_change_is_replaced_given_up_and_overtaken(deal: Dealing) -> None:
    await deal.buy(plan="big")
    await deal.change(AT_PERIOD_END, plan="small")
    replaced = (await deal.change(AT_PERIOD_END, plan="team", quantity=4)).subscription
    assert (replaced.pending_change.plan, replaced.pending_change.quantity) == ("team", 4)
    kept = (await deal.change(AT_PERIOD_END, plan="big")).subscription
    assert (kept.plan, kept.HasField("pending_change")) == ("big", False)
    refusal = await refusals.refused(deal.change(AT_PERIOD_END, plan="big"))
    assert (refusal.reason, refusal.metadata) == ("PLAN_UNCHANGED", {"plan": "big", "price": "monthly"})
    await deal.change(AT_PERIOD_END, plan="small")
    now = (await deal.change(NOW, plan="team")).subscription
    assert (now.plan, now.HasField("pending_change")) == ("team", False)
    await deal.change(AT_PERIOD_END, plan="small")
    ending = await deal.cancel(AT_PERIOD_END)
    assert (ending.HasField("cancel_at"), ending.HasField("pending_change")) == (True, False)
    await deal.change(AT_PERIOD_END, plan="small")
    told = await deal.told()
    assert (told.HasField("cancel_at"), told.pending_change.plan) == (False, "small")


async def test_two_changes_at_once_leave_one(deal: Dealing) -> None:
    await deal.buy(plan="small")
    plans = ("big", "team")
    answers = await asyncio.gather(
        *(deal.change(AT_PERIOD_END, plan=plan, request_id=plan) for plan in plans), return_exceptions=True
    )
    assert any(not isinstance(answer, BaseException) for answer in answers)
    told = await deal.told()
    assert told.plan == "small"
    assert told.pending_change.plan in plans
    schedules = await deal.world.sandbox.all("/v1/subscription_schedules")
    assert [one["status"] for one in schedules].count("active") == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"plan": "none_such"}, "PLAN_NOT_FOUND"),
        ({"plan": "old"}, "PLAN_NOT_SOLD"),
        ({"plan": "free"}, "PLAN_NOT_SOLD"),
        ({"plan": "big", "price": "weekly"}, "PRICE_NOT_FOUND"),
        ({"plan": "big", "quantity": 2}, "INVALID_REQUEST"),
        ({"plan": "small"}, "PLAN_UNCHANGED"),
        ({}, "PLAN_UNCHANGED"),
        ({"plan": "big", "request_id": ""}, "INVALID_REQUEST"),
        ({"plan": "big", "timing": 0}, "INVALID_REQUEST"),
    ],
)
async def test_what_does_not_fit_is_refused(deal: Dealing, fields: dict[str, object], reason: str) -> None:
    await deal.buy(plan="small")
    refusal = await refusals.refused(deal.change(**fields))  # type: ignore[arg-type]  # a test's own
    assert refusal.reason == reason
    assert await deal.world.rows(tables.change_requests) == []


async def test_an_account_without_a_subscription_cannot_change_plans(deal: Dealing) -> None:
    for call in (deal.change(plan="big"), deal.cancel(NOW), deal.resume()):
        refusal = await refusals.refused(call)
        assert (refusal.reason, refusal.metadata) == ("NOT_SUBSCRIBED", {"account_id": "org_1"})


async def test_who_stays_on_a_plan_stays_on_the_terms_that_it_was_sold_under(deal: Dealing) -> None:
    await deal.buy(plan="team", quantity=2)
    dearer = loading.load_text(CATALOG.replace('"8.00"', '"9.00"'), "tiers")
    billing = deal.world.billing
    await catalog_sync.apply(
        billing.transactions, deal.world.stripe, dearer, "operator:test", billing.clock, lambda _line: None
    )
    told = (await deal.change(quantity=3)).subscription
    (subscription,) = await deal.at_stripe()
    assert [item["price"]["unit_amount"] for item in subscription["items"]["data"]] == [800]
    newest = await billing.transactions.read(versions.newest)
    assert told.catalog_version == (newest or 0) - 1
    assert (await deal.change(plan="big")).subscription.catalog_version == newest
