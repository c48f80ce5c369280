"""Switching pay-as-you-go: local on a paid plan, a metered-only subscription on the default plan; never two charges."""

import asyncio
from datetime import timedelta

import pytest

from billing.v1 import decision_pb2
from billing_svc.catalog import versions
from billing_svc.platform.database import tables
from billing_svc.stripe import catalog_sync
from tests.billing_svc import refusals
from tests.billing_svc.sandboxed import catalog_of
from tests.billing_svc.subscriptions.dealing import AT_PERIOD_END, NOW, Dealing

ALLOWED, DENIED = decision_pb2.DECISION_ALLOWED, decision_pb2.DECISION_DENIED
# Into the next calendar month, and past the hour in which an invoice is a draft.
TO_NEXT_MONTH = 33


@pytest.fixture
def catalog_name() -> str:
    return "kalshibook"


async def test_pay_as_you_go_on_a_paid_plan_is_a_row(deal: Dealing) -> None:
    subscription_id = await deal.buy(plan="project")
    await deal.use("credits", 4_000)
    assert (await deal.check("credits")).decision == DENIED
    writes = len(await deal.world.sandbox.writes())
    told = await deal.switch(on=True)
    assert (told.pay_as_you_go, told.pay_as_you_go_pending) == (True, False)
    assert (await deal.check("credits")).decision == ALLOWED
    assert not (await deal.switch(on=False)).pay_as_you_go
    assert (await deal.check("credits")).decision == DENIED
    assert len(await deal.world.sandbox.writes()) == writes
    switches = [row for row in await deal.world.rows(tables.audit_log) if row.action == "pay_as_you_go.switched"]
    assert sorted((row.changes["enabled"], row.changes["subscription"], row.actor) for row in switches) == [
        (False, subscription_id, "caller:test"),
        (True, subscription_id, "caller:test"),
    ]


async def test_without_a_plan_it_makes_a_metered_only_subscription(deal: Dealing) -> None:
    await deal.use("credits", 1_000)
    period_end = (await deal.told()).quota_period_end
    told = await deal.switch(on=True)
    assert (told.plan, told.pay_as_you_go, told.pay_as_you_go_pending) == ("free", True, False)
    assert told.status == 1  # none: it does not count as a plan subscription
    assert told.quota_period_end == period_end
    check = await deal.check("credits")
    assert (check.decision, check.used) == (ALLOWED, 1_000)
    (made,) = await deal.at_stripe()
    assert made["billing_cycle_anchor"] == period_end.seconds
    assert [item["price"]["lookup_key"] for item in made["items"]["data"]] == ["kalshibook_free_payg_credits"]
    assert (made["metadata"]["account_id"], made["metadata"]["plan"]) == ("org_1", "free")
    await deal.world.deliver_new()
    await deal.work()
    assert await deal.world.rows(tables.subscription_duties) == []
    assert (await deal.told()).pay_as_you_go


async def test_two_switches_at_once_make_one_subscription(deal: Dealing) -> None:
    await asyncio.gather(*(refusals.repeated(lambda: deal.switch(on=True)) for _ in range(6)))
    assert len(await deal.at_stripe()) == 1
    assert (await deal.told()).pay_as_you_go


async def test_on_off_and_on_in_one_month_is_one_charge_and_one_allowance(deal: Dealing) -> None:
    await deal.use("credits", 1_000)
    await deal.switch(on=True)
    await deal.use("credits", 100)
    told = await deal.switch(on=False)
    assert not told.pay_as_you_go
    assert (await deal.check("credits")).decision == DENIED
    (ending,) = await deal.at_stripe()
    assert ending["cancel_at"] == ending["items"]["data"][0]["current_period_end"]
    await deal.advance(hours=1)
    assert (await deal.switch(on=True)).pay_as_you_go
    await deal.give_card()
    assert (await deal.check("credits")).used == 1_100
    await deal.use("credits", 25)
    (kept,) = await deal.at_stripe()
    assert (kept["cancel_at"], kept["id"]) == (None, ending["id"])
    await deal.advance(days=TO_NEXT_MONTH)
    assert await deal.invoiced() == {"kalshibook_free_payg_credits": 100}  # 125 credits of $0.008
    assert (await deal.told()).pay_as_you_go
    assert (await deal.check("credits")).used == 0


async def test_switched_off_it_ends_with_its_period_and_switched_on_later_it_begins_anew(deal: Dealing) -> None:
    await deal.switch(on=True)
    await deal.use("credits", 1_125)
    await deal.switch(on=False)
    await deal.advance(days=TO_NEXT_MONTH)
    assert [one["status"] for one in await deal.at_stripe()] == ["canceled"]
    assert await deal.invoiced() == {"kalshibook_free_payg_credits": 100}
    assert not (await deal.told()).pay_as_you_go
    assert (await deal.switch(on=True)).pay_as_you_go
    assert [one["status"] for one in await deal.at_stripe()] == ["canceled", "active"]


async def test_buying_a_plan_ends_it_and_invoices_what_was_used(deal: Dealing) -> None:
    await deal.switch(on=True)
    await deal.use("credits", 1_250)
    await deal.buy(plan="project")
    assert not (await deal.told()).pay_as_you_go
    await deal.work()
    assert [one["status"] for one in await deal.at_stripe()] == ["canceled", "active"]
    await deal.advance(hours=3)
    assert await deal.invoiced() == {"kalshibook_free_payg_credits": 200, "kalshibook_project_monthly": 3_000}
    assert await deal.world.rows(tables.subscription_duties) == []
    # It is not switched on again with the default plan.
    await deal.cancel(NOW)
    assert not (await deal.told()).pay_as_you_go


async def test_who_cancels_is_back_on_free_without_it(deal: Dealing) -> None:
    await deal.buy(plan="project")
    await deal.switch(on=True)
    ending = await deal.cancel(AT_PERIOD_END)
    assert (ending.plan, ending.pay_as_you_go, ending.cancel_at_period_end) == ("project", True, True)
    assert ending.cancel_at == ending.period_end
    # The clock alone ends it: no event is delivered.
    deal.world.billing.clock.advance(timedelta(days=TO_NEXT_MONTH))
    told = await deal.told()
    assert (told.plan, told.pay_as_you_go) == ("free", False)


async def test_the_same_request_again_switches_nothing(deal: Dealing) -> None:
    await deal.switch(on=True, request_id="r1")
    await deal.switch(on=False, request_id="r2")
    assert not (await deal.switch(on=True, request_id="r1")).pay_as_you_go
    refusal = await refusals.refused(deal.switch(on=False, request_id="r1"))
    assert (refusal.reason, refusal.metadata) == ("REQUEST_ID_REUSED", {"request_id": "r1"})


async def test_switched_off_it_is_denied_at_once_though_stripe_is_away(deal: Dealing) -> None:
    await deal.use("credits", 1_000)
    await deal.switch(on=True)

    async def away(_method: str, _path: str) -> int | None:
        return 503

    deal.world.sandbox.faults.before = away
    assert not (await deal.switch(on=False)).pay_as_you_go
    assert (await deal.check("credits")).decision == DENIED
    deal.world.sandbox.faults.clear()
    deal.world.billing.clock.advance(timedelta(minutes=10))
    await deal.work()
    (ending,) = await deal.at_stripe()
    assert ending["cancel_at"] is not None


async def test_a_crash_at_any_call_is_carried_on(deal: Dealing) -> None:
    """The crash point moves: each attempt gets one call further."""

    async def refuse_from(number: int) -> bool:
        seen = 0

        async def cut(method: str, _path: str) -> int | None:
            nonlocal seen
            seen += method != "GET"
            return 503 if seen > number else None

        deal.world.sandbox.faults.after = cut
        try:
            return (await deal.switch(on=True, request_id="r1")).pay_as_you_go
        except Exception:  # noqa: BLE001 - whatever it says, the same call is sent again
            return False
        finally:
            deal.world.sandbox.faults.clear()

    for number in range(3):
        await refuse_from(number)
    assert (await deal.switch(on=True, request_id="r1")).pay_as_you_go
    assert len(await deal.at_stripe()) == 1
    assert len(await deal.world.sandbox.all("/v1/customers")) == 1


async def test_a_catalog_may_demand_a_payment_method_first(deal: Dealing) -> None:
    demanding = catalog_of(
        "kalshibook", {"      name: Pay as you go\n": "      name: Pay as you go\n      require_payment_method: true\n"}
    )
    billing = deal.world.billing
    await catalog_sync.apply(
        billing.transactions, deal.world.stripe, demanding, "operator:test", billing.clock, lambda _line: None
    )
    assert (await billing.transactions.read(versions.newest)) == 2
    refusal = await refusals.refused(deal.switch(on=True, request_id="r1"))
    assert (refusal.reason, refusal.metadata) == ("PAYMENT_METHOD_REQUIRED", {"account_id": "org_1"})
    await deal.give_card("works")
    assert (await deal.switch(on=True, request_id="r1")).pay_as_you_go


async def test_what_is_used_after_it_was_switched_off_hides_nothing_from_the_bill(deal: Dealing) -> None:
    await deal.switch(on=True)
    await deal.give_card()
    await deal.use("credits", 1_125)
    await deal.switch(on=False)
    # Usage that has happened, though a check would have denied it.
    assert (await deal.use("credits", 50)).billable == 0
    await deal.advance(days=TO_NEXT_MONTH)
    assert await deal.invoiced() == {"kalshibook_free_payg_credits": 100}


async def test_while_its_subscription_is_not_known_here_it_is_pending(deal: Dealing) -> None:
    subscription = "/v1/subscriptions/"

    async def unreachable(method: str, path: str) -> int | None:
        return 503 if method == "GET" and path.startswith(subscription) else None

    deal.world.sandbox.faults.before = unreachable
    told = await deal.switch(on=True)
    assert (told.pay_as_you_go, told.pay_as_you_go_pending) == (False, True)
    deal.world.sandbox.faults.clear()
    await deal.world.deliver_new()
    told = await deal.told()
    assert (told.pay_as_you_go, told.pay_as_you_go_pending) == (True, False)


async def test_switching_on_takes_back_an_end_that_was_scheduled_in_the_portal(deal: Dealing) -> None:
    await deal.switch(on=True)
    (made,) = await deal.at_stripe()
    period_end = made["items"]["data"][0]["current_period_end"]
    await deal.world.sandbox.call("POST", f"/v1/subscriptions/{made['id']}", cancel_at=period_end)
    await deal.world.deliver_new()
    await deal.work()
    assert [one["cancel_at"] for one in await deal.at_stripe()] == [period_end]
    await deal.switch(on=True)
    assert [one["cancel_at"] for one in await deal.at_stripe()] == [None]
