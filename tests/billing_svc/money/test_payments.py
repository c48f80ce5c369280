"""Failed and double payments: no usage is lost, and nothing is paid twice."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.v1 import decision_pb2, subscription_pb2
from billing_svc.platform.database import tables
from tests.billing_svc.money.ledger import Ledger

RUN = Decimal("0.50")


async def test_while_a_payment_is_overdue_the_plan_stays_and_its_overage_is_charged(ledger: Ledger) -> None:
    await ledger.buy()
    await ledger.use("runs", 207)
    await ledger.give_card("declines")
    await ledger.over_the_period_end()
    told = await ledger.told()
    assert (told.plan, told.status, told.past_due) == ("pro", subscription_pb2.STATUS_PAST_DUE, True)
    check = await ledger.check("runs")
    assert (check.decision, check.past_due, check.used) == (decision_pb2.DECISION_ALLOWED, True, 0)
    await ledger.use("runs", 203)
    await ledger.give_card("works")
    await ledger.advance(days=10)
    told = await ledger.told()
    assert (told.status, told.past_due) == (subscription_pb2.STATUS_ACTIVE, False)
    await ledger.over_the_period_end()
    assert await ledger.totals() == [Decimal(20), 20 + 7 * RUN, 20 + 3 * RUN]
    assert {one["status"] for one in await ledger.invoices()} == {"paid"}
    assert await ledger.differences() == []


@pytest.mark.parametrize("ends", ["canceled", "unpaid"])
async def test_when_stripe_gives_up_the_plan_is_lost_and_what_was_used_is_asked_for(ledger: Ledger, ends: str) -> None:
    await ledger.world.sandbox.control("POST", "dunning", {"ends": ends})
    await ledger.buy()
    await ledger.give_card("declines")
    await ledger.over_the_period_end()
    # Overage while the subscription is past due; some of it is not reported when Stripe gives up.
    assert (await ledger.use("runs", 204)).billable == 4
    await ledger.advance(days=1)
    while (await ledger.told()).past_due:
        assert (await ledger.use("runs", 1)).billable == 1
        await ledger.advance(days=2)
    told = await ledger.told()
    assert (told.plan, told.past_due) == ("free", False)
    assert told.status == {"canceled": subscription_pb2.STATUS_CANCELED, "unpaid": subscription_pb2.STATUS_UNPAID}[ends]
    assert await ledger.as_told() == await ledger.as_at_stripe()
    # The default plan's five, denied beyond; usage recorded there is not charged.
    assert (await ledger.use("runs", 9)).billable == 0
    assert (await ledger.check("runs")).decision == decision_pb2.DECISION_DENIED
    rows = await ledger.world.rows(tables.usage_counters)
    beyond = sum(row.billable for row in rows)
    assert beyond > 4
    await ledger.advance(days=33)
    assert await ledger.charged_by_meters() == beyond * RUN
    # The draft that an unpaid subscription leaves behind charges nobody.
    expected = {"canceled": [], "unpaid": ["draft_stuck"]}[ends]
    assert [kind for kind, _ in await ledger.differences()] == expected


async def test_ended_in_the_dashboard_without_a_last_invoice(ledger: Ledger) -> None:
    """The meter has the units, but no invoice of the subscription will charge them."""
    subscription_id = await ledger.buy()
    await ledger.use("runs", 210)
    await ledger.advance(hours=1)
    await ledger.use("runs", 3)
    await ledger.advance(hours=1)
    await ledger.world.sandbox.call("DELETE", f"/v1/subscriptions/{subscription_id}", prorate="false")
    await ledger.work()
    assert await ledger.charged() == 20
    await ledger.advance(hours=3)
    await ledger.advance(hours=2)
    assert await ledger.charged() == 20 + 13 * RUN
    assert {one["status"] for one in await ledger.invoices()} == {"paid"}
    assert await ledger.differences() == []
    await ledger.advance(days=40)
    assert await ledger.charged() == 20 + 13 * RUN


async def test_who_pays_after_all_has_the_plan_again(ledger: Ledger) -> None:
    await ledger.world.sandbox.control("POST", "dunning", {"ends": "unpaid"})
    await ledger.buy()
    await ledger.give_card("declines")
    await ledger.advance(days=60)
    assert (await ledger.told()).status == subscription_pb2.STATUS_UNPAID
    await ledger.give_card("works")
    for invoice in await ledger.invoices():
        if invoice["status"] == "draft":
            await ledger.world.sandbox.call("POST", f"/v1/invoices/{invoice['id']}/finalize")
    for invoice in await ledger.invoices():
        if invoice["status"] == "open":
            await ledger.world.sandbox.call("POST", f"/v1/invoices/{invoice['id']}/pay")
    await ledger.work()
    told = await ledger.told()
    assert (told.plan, told.status) == ("pro", subscription_pb2.STATUS_ACTIVE)
    assert await ledger.as_told() == await ledger.as_at_stripe()
    assert (await ledger.use("runs", 206)).billable == 6
    await ledger.over_the_period_end()
    assert await ledger.charged_by_meters() == 6 * RUN
    assert await ledger.differences() == []


async def second_page(ledger: Ledger) -> str:
    """Open a second checkout page at Stripe directly, with the first page's parameters; returns its URL."""
    (made,) = await ledger.world.sandbox.requests("POST", "/v1/checkout/sessions")
    page = await ledger.world.sandbox.call("POST", "/v1/checkout/sessions", **dict(flat(made["params"])))
    return str(page["url"])


def flat(value: Any, name: str = "") -> list[tuple[str, object]]:  # noqa: ANN401 - JSON
    if not isinstance(value, dict | list):
        return [(name, value)]
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [one for key, inner in pairs for one in flat(inner, f"{name}[{key}]" if name else str(key))]


@pytest.mark.parametrize("used_between", [False, True])
async def test_of_two_pages_that_were_both_paid_one_subscription_stays(ledger: Ledger, *, used_between: bool) -> None:
    """The superfluous subscription is refunded to the cent; usage is charged once, on the subscription that stays."""
    page = await ledger.world.checkout()
    other = await second_page(ledger)
    await ledger.world.sandbox.pay(page.url)
    await ledger.world.sandbox.pay(other)
    if used_between:
        await ledger.world.deliver_new()
        assert (await ledger.use("runs", 230)).billable == 30
    await ledger.work()
    await ledger.work()
    living = [one for one in await ledger.at_stripe() if one["status"] == "active"]
    assert len(living) == 1
    assert (await ledger.told()).subscription_id == living[0]["id"]
    assert (await ledger.told()).plan == "pro"
    if not used_between:
        assert (await ledger.use("runs", 230)).billable == 30
    await ledger.over_the_period_end()
    assert [one["status"] for one in await ledger.at_stripe("active")] == ["active"]
    # Two months of one subscription, and the usage; the second page's payment is credited except for some seconds of
    # it.
    owed = 20 + 20 + 30 * RUN
    assert abs(await ledger.charged() - owed) <= Decimal("0.01")
    assert await ledger.charged_by_meters() == 30 * RUN
    assert await ledger.differences() == []


@pytest.mark.parametrize("sent", [False, True])
async def test_of_two_pages_the_later_one_s_event_comes_first(ledger: Ledger, *, sent: bool) -> None:
    """Usage in between counts under the later subscription, and is charged once, on the subscription that stays."""
    page = await ledger.world.checkout()
    other = await second_page(ledger)
    await ledger.world.sandbox.pay(page.url)
    await ledger.world.sandbox.control("POST", "clock/step", {"seconds": 5})
    ledger.world.billing.clock.advance(timedelta(seconds=5))
    first = {event["id"] for event in await ledger.world.events()}
    await ledger.world.sandbox.pay(other)
    late = [event for event in await ledger.world.events() if event["id"] not in first]
    await ledger.world.deliver(*late)
    await ledger.world.apply_all()
    assert (await ledger.use("runs", 230)).billable == 30
    if sent:
        await ledger.report()
    await ledger.advance(minutes=30)
    await ledger.work()
    assert [one["status"] for one in await ledger.at_stripe("active")] == ["active"]
    await ledger.over_the_period_end()
    assert await ledger.charged_by_meters() == 30 * RUN
    assert abs(await ledger.charged() - (20 + 20 + 30 * RUN)) <= Decimal("0.01")
    assert await ledger.differences() == []


async def test_a_page_that_is_paid_long_after_the_other_is_refunded_too(ledger: Ledger) -> None:
    page = await ledger.world.checkout()
    other = await second_page(ledger)
    await ledger.world.sandbox.pay(page.url)
    await ledger.work()
    await ledger.world.advance(timedelta(hours=20), ledger.work)
    await ledger.use("runs", 203)
    await ledger.world.sandbox.pay(other)
    await ledger.work()
    assert [one["status"] for one in await ledger.at_stripe("active")] == ["active"]
    await ledger.over_the_period_end()
    assert abs(await ledger.charged() - (20 + 20 + 3 * RUN)) <= Decimal("0.01")
    assert await ledger.differences() == []
